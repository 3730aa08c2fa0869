"""Pictures: colours, labels over images, features."""
