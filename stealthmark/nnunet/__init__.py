"""nnU-Net's own training with a mark embedded. This folder is where nnU-Net looks for the trainer."""
