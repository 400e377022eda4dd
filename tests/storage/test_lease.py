"""At most one writer per output, on disk and in object storage, even if runs race or die."""

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from resunet_ray import storage
from resunet_ray.config.lease import LeaseConfig
from resunet_ray.errors import LeaseError, RunError
from resunet_ray.storage.lease import LEASES, create_exclusively


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path)
        if request.param == "disk"
        else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    )


def test_only_one_of_many_writers_creates_a_file(place: str) -> None:
    made: list[bool] = []
    barrier = threading.Barrier(8)

    def make(number: int) -> None:
        barrier.wait()
        made.append(create_exclusively(storage.join(place, "one"), str(number).encode()))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == 1


def test_a_second_run_is_refused_and_a_later_one_is_not(place: str) -> None:
    with storage.hold_lease(place, seconds=30) as lease:
        with (
            pytest.raises(LeaseError, match=f"another run, {lease.holder}, is writing to"),
            storage.hold_lease(place, seconds=30),
        ):
            pass
        lease.check()
    with storage.hold_lease(place, seconds=30):
        assert [name for name, _ in storage.list_files(storage.join(place, LEASES))] == ["000002"]


def test_a_live_lease_is_kept_and_a_dead_one_is_taken_over(place: str) -> None:
    """The holder renews its lease as long as it lives, and notices if another run took it over."""
    with storage.hold_lease(place, seconds=6) as lease:
        time.sleep(8)
        with pytest.raises(LeaseError), storage.hold_lease(place, seconds=6):
            pass
        lease.check()
    started = time.time()
    create_exclusively(
        storage.join(place, LEASES, "000002"),
        b'{"holder": "dead", "released": false, "seconds": 9}',
    )
    with (
        pytest.raises(LeaseError, match="another run, dead,"),
        storage.hold_lease(place, seconds=9),
    ):
        pass
    time.sleep(4)  # its renewal is overdue: the next run waits for the end of the lease
    with storage.hold_lease(place, seconds=3) as lease:
        assert time.time() - started > 8  # S3 knows whole seconds
        create_exclusively(
            storage.join(place, LEASES, "000004"),
            b'{"holder": "thief", "released": false, "seconds": 3}',
        )
        time.sleep(2)
        with pytest.raises(
            RunError, match="was taken over by thief, because this run did not renew it in time"
        ):
            lease.check()


def test_a_lease_that_expired_is_held_on_to_if_nobody_took_it(place: str) -> None:
    """As after a laptop's sleep. Whoever creates the next number holds the lease."""
    with storage.hold_lease(place, seconds=600) as lease:
        lease.renewed -= 1000
        lease.check()
        assert lease.uri.endswith("000002")
        names = [name for name, _ in storage.list_files(storage.join(place, LEASES))]
        assert names == ["000002"]
        with (
            pytest.raises(LeaseError, match=f"another run, {lease.holder}"),
            storage.hold_lease(place, seconds=600),
        ):
            pass
        create_exclusively(
            storage.join(place, LEASES, "000003"),
            b'{"holder": "thief", "released": false, "seconds": 600}',
        )
        lease.renewed -= 1000
        with pytest.raises(RunError, match="was taken over by thief"):
            lease.check()


def test_a_run_on_the_machine_of_a_dead_holder_takes_over_at_once(place: str) -> None:
    code = (
        "from resunet_ray import storage\n"
        f"with storage.hold_lease({place!r}, seconds=600): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError), storage.hold_lease(place, seconds=600):
            pass
        holder.kill()
    with storage.hold_lease(place, seconds=600) as lease:
        assert lease.uri.endswith("000002")


def test_a_copy_in_another_process_notices_that_the_lease_was_taken_over(place: str) -> None:
    """It does not renew the lease, which is the holder's to do."""
    with storage.hold_lease(place, seconds=600) as lease:
        copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(lease))))
        lease.renewed -= 1000
        lease.check()
        copy.renewed -= 1000
        copy.check()
        assert [name for name, _ in storage.list_files(storage.join(place, LEASES))] == ["000002"]
        create_exclusively(storage.join(place, LEASES, "000003"), b'{"hol')
        copy.check()  # the new lease is being written: its holder shows next time
        storage.write_bytes(
            storage.join(place, LEASES, "000003"),
            b'{"holder": "thief", "released": true, "seconds": 600}',
        )
        with pytest.raises(RunError, match="was taken over by thief"):
            copy.check()


def test_without_leases_or_under_the_caller_s_none_is_taken(tmp_path: Path) -> None:
    with storage.hold_output(LeaseConfig(), str(tmp_path)) as lease:
        with storage.hold_output(LeaseConfig(lease=False), str(tmp_path)) as none:
            pickle.loads(pickle.dumps(none)).check()
            none.check()
        with storage.hold_output(LeaseConfig(), str(tmp_path / "part"), held=lease) as same:
            assert same is lease
    assert [name for name, _ in storage.list_files(str(tmp_path))] == [f"{LEASES}/000001"]
