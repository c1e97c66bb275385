from pathlib import Path

import pytest

from navprune.errors import UserError
from navprune.files import write_file


def test_a_folder_that_cannot_be_entered_is_one_line(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    for asked in ("is_dir", "mkdir", "open"):
        monkeypatch.setattr(Path, asked, refuse)
    with pytest.raises(UserError, match=r"out\.json: Permission denied"):
        write_file(tmp_path / "out.json", b"")
