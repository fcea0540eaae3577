"""Direct preference optimization (DPO): chosen over rejected replies, against a frozen reference."""
