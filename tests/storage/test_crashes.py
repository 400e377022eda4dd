"""An image is only blamed for deaths of the process that worked on it."""

from pathlib import Path

from resunet_ray.storage.crashes import Notes, forget


def notes(
    folder: Path, *, session: str = "tonight", node: str = "n1", lost: tuple[str, ...] = ()
) -> Notes:
    return Notes(str(folder), session, node, lambda name: name in lost)


def test_deaths_are_counted_until_the_image_is_done(tmp_path: Path) -> None:
    assert [notes(tmp_path).note_chunk(3) for _ in range(3)] == [0, 1, 2]
    assert notes(tmp_path).note_chunk(4) == 0
    for deaths in range(2):
        image = notes(tmp_path).note_image(3, 7)
        assert image.__enter__() == deaths  # never exited: the process died
    with notes(tmp_path).note_image(3, 7) as deaths:
        assert deaths == 2
    with notes(tmp_path).note_image(3, 7) as deaths:
        assert deaths == 0
    forget(str(tmp_path))
    assert notes(tmp_path).note_chunk(3) == 0


def test_a_stopped_job_or_a_lost_node_is_not_a_death(tmp_path: Path) -> None:
    for session in ("monday", "tuesday"):
        for _ in range(3):
            notes(tmp_path, session=session).note_chunk(3)
    assert notes(tmp_path, node="n2").note_chunk(3) == 0
    assert notes(tmp_path, node="n1", lost=("n2",)).note_chunk(3) == 0
    assert notes(tmp_path, node="n3", lost=("n2",)).note_chunk(3) == 1
    assert notes(tmp_path, node="").note_chunk(3) == 3
