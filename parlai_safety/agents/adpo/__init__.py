"""Adversarial DPO (a reconstruction): DPO, and a penalty on replies of the inner toxic model."""
