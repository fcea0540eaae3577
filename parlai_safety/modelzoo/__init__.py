"""Put on the path of `parlai.zoo`, so that `zoo:safety/NAME/model` is found; holds no model itself."""
