"""Labelled images: CIFAR-10 and CIFAR-100, folders of images, arrays in a file, handwritten digits."""
