"""stub"""

import torch

TRAIN, VAL, TEST = ("train", "val", "test")
DRAWS = 5


class Images:
    def __init__(s, x, y):
        s.x, s.labels = x, y
        s.classes = tuple("0123456789")
        s.shape = tuple(x.shape[1:])

    def __len__(s):
        return len(s.labels)

    def views(s, rows, draws=None):
        return s.x[rows]


def open_images(config, split):
    from sklearn.datasets import load_digits

    d = load_digits()
    x = torch.tensor(d.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(d.target)
    p = torch.randperm(len(y), generator=torch.Generator().manual_seed(config.split_seed))
    part = {"test": p[:360], "val": p[360:504], "train": p[504:]}[split]
    m, s = x[p[504:]].mean(), x[p[504:]].std()
    return Images((x[part] - m) / s, y[part].long())


def digest(images):
    from hashlib import sha256

    return sha256(
        images.labels.numpy().tobytes() + images.views(torch.arange(len(images)))[:8].numpy().tobytes()
    ).hexdigest()
