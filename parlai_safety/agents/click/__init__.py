"""Click: likelihood with a margin between chosen and rejected replies."""
