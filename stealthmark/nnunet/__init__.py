"""nnU-Net's own training and model folders: a trainer that embeds a mark, and a suspect that is such a folder."""
