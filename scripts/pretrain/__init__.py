"""The stages that train the embedded models, one file each."""
