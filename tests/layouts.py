"""Data sets in the layouts of Gibson, Matterport3D, HM3D and Habitat's test scenes, made from the reference scenes."""

import gzip
import json
from pathlib import Path

REFERENCE = Path(__file__).parent / "data" / "reference"
SCENES = REFERENCE / "scene_datasets" / "reference"
HM3D_CONFIG = "./data/scene_datasets/hm3d/hm3d_basis.scene_dataset_config.json"


def entries(scene: str, scene_id: str, count: int = 20, first: int = 0, **changes) -> list[dict]:
    """Habitat's own episodes of a reference scene, renamed to `scene_id` and numbered from `first`."""
    file = REFERENCE / "datasets" / "pointnav" / "reference" / "v1" / "val" / "content" / f"{scene}.json.gz"
    episodes = json.loads(gzip.decompress(file.read_bytes()))["episodes"][:count]
    return [e | {"scene_id": scene_id, "episode_id": str(first + i)} | changes for i, e in enumerate(episodes)]


def put_scene(data: Path, scene: str, path: str) -> None:
    """Links a reference scene and its navmesh to `scene_datasets/PATH` (a .glb)."""
    target = data / "scene_datasets" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(SCENES / f"{scene}.glb")
    target.with_suffix(".navmesh").symlink_to(SCENES / f"{scene}.navmesh")


def put_episodes(data: Path, place: str, split: str, listed: list[dict], contents: dict[str, list[dict]]) -> None:
    """Writes `datasets/pointnav/PLACE/SPLIT`: the split's own list and the files in content."""
    folder = data / "datasets" / "pointnav" / place / split
    (folder / "content").mkdir(parents=True)
    for path, episodes in [
        (folder / f"{split}.json.gz", listed),
        *((folder / "content" / f"{scene}.json.gz", part) for scene, part in contents.items()),
    ]:
        path.write_bytes(gzip.compress(json.dumps({"episodes": episodes}).encode()))
    if not contents:
        (folder / "content").rmdir()


def gibson(data: Path, version: str = "v1") -> None:
    """Scene ids with the leading folder, whole numbers for ids; in v2 they restart in every scene."""
    scenes = {"Cantwell": "apartment", "Eastville": "duplex"}
    contents = {}
    for name, scene in scenes.items():
        if not (data / "scene_datasets" / "gibson" / f"{name}.glb").exists():
            put_scene(data, scene, f"gibson/{name}.glb")
        first = 0 if version == "v2" else 100 * len(contents)
        contents[name] = entries(scene, f"data/scene_datasets/gibson/{name}.glb", first=first)
        for entry in contents[name]:
            entry["episode_id"] = int(entry["episode_id"])
    put_episodes(data, f"gibson/{version}", "val", [], contents)


def mp3d(data: Path) -> None:
    """A folder for each scene; validation episodes all in one file, training episodes by scene."""
    for name, scene in (("17DRP5sb8fy", "apartment"), ("2azQ1b91cZZ", "duplex")):
        put_scene(data, scene, f"mp3d/{name}/{name}.glb")
    house = entries("apartment", "mp3d/17DRP5sb8fy/17DRP5sb8fy.glb")
    tower = entries("duplex", "mp3d/2azQ1b91cZZ/2azQ1b91cZZ.glb", first=20)
    put_episodes(data, "mp3d/v1", "train", [], {"17DRP5sb8fy": house})
    put_episodes(data, "mp3d/v1", "val", house + tower, {})


def hm3d(data: Path) -> None:
    """Numbered folders by split and `.basis` in the names; episodes that name a scene data set's configuration."""
    for split, folder, scene in (("train", "00009-vLpv2VX547B", "apartment"), ("val", "00800-TEEsavR23oF", "duplex")):
        name = folder.partition("-")[2]
        path = f"hm3d/{split}/{folder}/{name}.basis.glb"
        put_scene(data, scene, path)
        put_episodes(
            data, "hm3d/v1", split, [], {name: entries(scene, path, scene_dataset_config=HM3D_CONFIG, start_room=None)}
        )


def habitat_test_scenes(data: Path) -> None:
    """Habitat's test scenes: all episodes in the split's own file."""
    put_scene(data, "apartment", "habitat-test-scenes/apartment_1.glb")
    scene_id = "data/scene_datasets/habitat-test-scenes/apartment_1.glb"
    put_episodes(data, "habitat-test-scenes/v1", "val", entries("apartment", scene_id), {})
