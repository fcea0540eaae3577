"""The zoo: models by name, as in `-mf zoo:safety/NAME/model` and `--judge zoo:safety/NAME`.

`zoo/registry.json` lists them (`entries`). What has an address is downloaded, checked and only then used (`fetch`,
`unpack`); what has a recipe is built on the user's own machine by `parlai safety_zoo build NAME`, which is in `loops`.
Either way the files lie in `models/safety/NAME` of ParlAI's data folder with a manifest of their hashes (`store`).
ParlAI's own `zoo:` grammar is reused: `parlai_safety/modelzoo` is put on the path of `parlai.zoo`.
"""

from parlai_safety.zoo.entries import Entry, Published, Recipe, Remote, entry, registry, unknown_model
from parlai_safety.zoo.store import download, folder_of, manifest_of, state_of

__all__ = [
    "Entry",
    "Published",
    "Recipe",
    "Remote",
    "download",
    "entry",
    "folder_of",
    "manifest_of",
    "registry",
    "state_of",
    "unknown_model",
]
