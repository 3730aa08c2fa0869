"""Pictures of what a backbone sees in an image: PCA and similarity of its patch features."""
