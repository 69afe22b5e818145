"""The folder where ranks meet: what it trusts, what it refuses by name, and what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from swtrace.errors import TransportError
from swtrace.trace.share_folder import ShareFolder, dead_folders, folder_name, remove
from tests.support.other_user import USER
from tests.support.patience import patience
from tests.support.small_disk import tmpfs

NAME = folder_name("run", "s", (0, 1))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def member(directory: Path, own: int = 0, ranks: tuple[int, ...] = (0, 1), timeout_s: float = 0.05) -> ShareFolder:
    """Return a member that has joined."""
    folder = ShareFolder(directory / NAME, ranks, own, timeout_s)
    folder.join()
    return folder


def content(path: Path) -> set[str]:
    """Return the names in a folder."""
    return {entry.name for entry in path.iterdir()}


def test_names_differ_by_run_series_and_ranks_and_are_safe() -> None:
    """However odd the run id is."""
    odd = folder_name("../../etc", "s", (0, 1))
    assert "/" not in odd
    names = {
        odd,
        NAME,
        folder_name("run", "t", (0, 1)),
        folder_name("run", "s", (2, 3)),
        folder_name("other", "s", (0, 1)),
        folder_name("run\0s", "", (0, 1)),
    }
    assert len(names) == 6


def test_ranks_exchange_items_in_order(tmp_path: Path) -> None:
    """Each call returns what every rank said in its call of the same number."""
    answers: dict[int, list[list[object]]] = {}

    def talk(own: int) -> None:
        folder = member(tmp_path, own, timeout_s=patience())
        answers[own] = [folder.exchange((own, number)) for number in range(20)]
        folder.leave()

    threads = [threading.Thread(target=talk, args=(own,)) for own in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1] == [[(0, number), (1, number)] for number in range(20)]
    assert content(tmp_path) == set()


def test_a_member_that_comes_back_finds_what_was_said(tmp_path: Path) -> None:
    """It need not wait for anybody."""
    first, second = member(tmp_path, 0), member(tmp_path, 1)
    with pytest.raises(TransportError):
        first.exchange("a")  # the second has not said anything
    assert second.exchange("b") == ["a", "b"]
    second.leave()
    again = member(tmp_path, 1)
    assert again.exchange("b") == ["a", "b"]
    again.leave()
    first.leave()


def test_only_the_last_member_removes_the_folder(tmp_path: Path) -> None:
    """Until then its layers can be mapped."""
    first, second = member(tmp_path, 0), member(tmp_path, 1)
    first.publish("layer-0", 4, lambda mapping: mapping.write(b"abcd"))
    first.leave()
    first.leave()
    assert not second.lives(0)
    assert second.lives(1)
    mapping = second.map("layer-0", 4, writable=False)
    second.leave()
    assert content(tmp_path) == set()
    assert mapping[:] == b"abcd"


def test_a_rank_that_lives_already_is_refused(tmp_path: Path) -> None:
    """The error names the process that has its place."""
    first = member(tmp_path, 1)
    with pytest.raises(TransportError, match=rf"rank 1 of this run lives already \(pid {os.getpid()}\): give each"):
        member(tmp_path, 1)
    assert first.lives(1)
    first.leave()


def test_a_missing_rank_and_a_slow_one_are_told_apart(tmp_path: Path) -> None:
    """One never started, the other one did."""
    first, second = member(tmp_path, 0, (0, 4, 9)), member(tmp_path, 1, (0, 4, 9))
    with pytest.raises(TransportError) as caught:
        first.exchange(1)
    assert str(caught.value) == (
        "rank 9 did not start, or died, and rank 4 did not get as far as this rank within 0.05 s (SWTRACE_TIMEOUT); "
        "all replicas need the same SWTRACE_DIR and SWTRACE_RUN_ID"
    )
    first.leave()
    second.leave()


def test_a_folder_that_stays_locked_is_given_up(tmp_path: Path) -> None:
    """By a process that was stopped while it joined; ranks of other runs are not held up at all."""
    first = member(tmp_path)
    descriptor = os.open(tmp_path / NAME, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(TransportError, match=r"another process has locked .* for 0.05 s; has it stopped"):
        member(tmp_path, 1)
    assert dead_folders(tmp_path) == []
    os.close(descriptor)
    first.leave()


def test_what_another_version_said_is_an_error(tmp_path: Path) -> None:
    """It says what to do."""
    first, second = member(tmp_path, 0), member(tmp_path, 1)
    second.publish("said-0-1", 5, lambda mapping: mapping.write(b"other"))
    with pytest.raises(TransportError, match=r"said-0-1 cannot be read .*: run the same version of swtrace on all"):
        first.exchange(1)
    first.leave()
    second.leave()


def _foreign_file(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "notes.txt").touch()


def _socket(path: Path) -> None:
    os.mknod(path / "rank-0.lock", stat.S_IFSOCK | 0o600)


def _linked_lock(path: Path) -> None:
    (path.parent / "elsewhere").write_text("precious")
    (path / "rank-0.lock").symlink_to(path.parent / "elsewhere")


def _directory_for_lock(path: Path) -> None:
    (path / "rank-0.lock").mkdir()


def _open_to_others(path: Path) -> None:
    path.mkdir(mode=0o700)
    path.chmod(0o777)


def _linked_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def _file_for_folder(path: Path) -> None:
    path.touch(mode=0o600)


LOCKS: dict[str, Callable[[Path], None]] = {
    "a socket": _socket,
    "a link": _linked_lock,
    "a folder": _directory_for_lock,
}


@pytest.mark.parametrize("case", LOCKS)
def test_a_lock_that_is_not_a_file_is_refused_while_others_live(case: str, tmp_path: Path) -> None:
    """Without others, everything that has a name of swtrace's is removed, and nothing outside the folder is touched."""
    other = member(tmp_path, 1)
    LOCKS[case](tmp_path / NAME)
    with pytest.raises(TransportError, match=r"rank-0.lock is not a regular file: remove it"):
        member(tmp_path)
    if case == "a folder":
        (tmp_path / NAME / "rank-0.lock").rmdir()
    other.leave()
    member(tmp_path).leave()
    assert content(tmp_path) <= {"elsewhere"}
    if case == "a link":
        assert (tmp_path / "elsewhere").read_text() == "precious"


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a foreign file": (_foreign_file, r"pull-run-\w+ holds 'notes.txt', which is not swtrace's: remove it"),
    "a folder open to others": (_open_to_others, r"is accessible to other users \(mode 0777\): remove it"),
    "a folder that is a link": (_linked_folder, r"pull-run-\w+ is not a folder: remove it"),
    "a file": (_file_for_folder, r"pull-run-\w+ is not a folder: remove it"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_trusted_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """And nothing outside the folder is touched."""
    make, message = HOSTILE[case]
    make(tmp_path / NAME)
    with pytest.raises(TransportError, match=message):
        member(tmp_path)
    if case == "a folder that is a link":
        assert content(tmp_path / "elsewhere") == set()


@needs_root
@pytest.mark.parametrize("name", ["", "rank-0.lock", "layer-0"])
def test_another_users_folder_and_files_are_refused(name: str, tmp_path: Path) -> None:
    """Whoever writes there could make this process read what they like."""
    path = tmp_path / NAME
    other = member(tmp_path, 1)
    if name:
        (path / name).touch(mode=0o600)
    os.chown(path / name if name else path, USER, USER)
    with pytest.raises(TransportError, match=rf"belongs to user {USER}, not to user 0: run all replicas as one user"):
        member(tmp_path).map("layer-0", 0, writable=False)
    other.leave()


def test_a_layer_of_another_size_is_refused(tmp_path: Path) -> None:
    """It belongs to another model."""
    folder = member(tmp_path)
    folder.publish("layer-0", 4, lambda mapping: mapping.write(b"abcd"))
    with pytest.raises(TransportError, match="layer-0 has 4 bytes instead of 8: another checkpoint"):
        folder.map("layer-0", 8, writable=False)
    folder.leave()


def test_a_full_file_system_is_an_error_that_says_what_is_needed(tmp_path: Path) -> None:
    """Not a SIGBUS, and no part of the file remains."""
    with tmpfs(tmp_path, 1 << 20):
        folder = member(tmp_path)
        with pytest.raises(
            TransportError, match=r"no room for 2097152 bytes in .*, where \d+ are free; make that file"
        ):
            folder.publish("layer-0", 2 << 20, lambda _: None)
        assert content(tmp_path / NAME) == {"rank-0.lock"}
        folder.leave()


def test_unfinished_files_of_a_killed_rank_are_removed_when_it_comes_back(tmp_path: Path) -> None:
    """Those of others are not."""
    other = member(tmp_path, 1)
    (tmp_path / NAME / ".new-0").touch(mode=0o600)
    (tmp_path / NAME / ".new-1").touch(mode=0o600)
    folder = member(tmp_path, 0)
    assert content(tmp_path / NAME) == {"rank-0.lock", "rank-1.lock", ".new-1"}
    folder.leave()
    other.leave()


def test_dead_folders_are_removed_and_living_ones_kept(tmp_path: Path) -> None:
    """What is not a share folder, or holds an unknown file, is left alone."""
    living = member(tmp_path)
    dead = tmp_path / folder_name("dead", "s", (0, 1))
    dead.mkdir(mode=0o700)
    for name in ("rank-0.lock", "layer-0"):
        (dead / name).touch(mode=0o600)
    odd = tmp_path / "pull-odd"
    odd.mkdir(mode=0o700)
    for name in ("notes.txt", "layer-0"):
        (odd / name).touch()
    (tmp_path / "pull-file").touch()
    assert [(found.path, remove(found)) for found in dead_folders(tmp_path)] == [(dead, True)]
    assert content(tmp_path) == {NAME, "pull-odd", "pull-file"}
    assert content(odd) == {"notes.txt", "layer-0"}
    living.leave()


def test_a_folder_that_a_rank_has_joined_since_it_was_found_dead_is_kept(tmp_path: Path) -> None:
    """Whoever removes it looks again, and keeps ranks from joining meanwhile."""
    path = tmp_path / NAME
    path.mkdir(mode=0o700)
    (path / "layer-0").touch(mode=0o600)
    (found,) = dead_folders(tmp_path)
    joined = member(tmp_path)
    assert not remove(found)
    assert content(path) == {"rank-0.lock"}
    joined.leave()
    assert remove(found)


def test_the_size_of_a_dead_folder_counts_a_layer_with_two_names_once(tmp_path: Path) -> None:
    """A layer that post-processing left as it was loaded has two names."""
    path = tmp_path / NAME
    path.mkdir(mode=0o700)
    (path / "raw-0-0").write_bytes(b"x" * 1000)
    (path / "layer-0").hardlink_to(path / "raw-0-0")
    (path / "layer-1").write_bytes(b"x" * 10)
    assert [found.nbytes for found in dead_folders(tmp_path)] == [1010]


def test_ranks_that_come_and_go_at_once_never_lose_a_folder_in_use(tmp_path: Path) -> None:
    """Each finds its lock in place while it is a member."""
    problems: list[str] = []

    def come_and_go(own: int) -> None:
        for _ in range(60):
            folder = member(tmp_path, own, (0, 1, 2), timeout_s=patience())
            if not (tmp_path / NAME / f"rank-{own}.lock").exists():
                problems.append(f"rank {own} has no lock")
            folder.leave()

    threads = [threading.Thread(target=come_and_go, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert content(tmp_path) == set()


def test_a_rank_that_must_not_return_is_refused_while_others_live(tmp_path: Path) -> None:
    """Without seeming to live meanwhile; once nobody lives, it starts anew."""
    folder, other = member(tmp_path, 0, timeout_s=0.0), member(tmp_path, 1)
    with pytest.raises(TransportError, match="rank 1 did not get as far"):
        folder.exchange("first")
    folder.leave()
    again = ShareFolder(tmp_path / NAME, (0, 1), 0, 0.05)
    with pytest.raises(TransportError, match=r"rank 0 of this run has ended, .* those that are left \(rank 1\)"):
        again.join(returns=False)
    assert not other.lives(0)
    other.leave()
    again.join(returns=False)
    assert content(tmp_path / NAME) == {"rank-0.lock"}
    again.leave()


def test_two_ranks_of_one_number_are_told_so_also_where_none_may_return(tmp_path: Path) -> None:
    """The first one lives, so it is no return."""
    folder = member(tmp_path, 0, timeout_s=0.0)
    with pytest.raises(TransportError, match="rank 1 did not start"):
        folder.exchange("first")
    with pytest.raises(TransportError, match="rank 0 of this run lives already"):
        ShareFolder(tmp_path / NAME, (0, 1), 0, 0.05).join(returns=False)
    folder.leave()


def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    """A rank that has left has ended, although a child that it forked lives on."""
    folder, other = member(tmp_path, 0), member(tmp_path, 1)
    (read, write), (asked, begun) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.write(begun, b"!")
        os.read(read, 1)  # until the parent is done, or dead
        os._exit(0)
    os.close(read)
    try:
        os.read(asked, 1)
        assert other.lives(0), "what a child closes is not the parent's"
        os.close(folder._lock)  # as at its death
        folder._lock = -1
        assert not other.lives(0)
    finally:
        for descriptor in (write, asked, begun):
            os.close(descriptor)
        os.waitpid(pid, 0)
    folder.leave()
    other.leave()
