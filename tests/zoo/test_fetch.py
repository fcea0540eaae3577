"""Downloads against a local server: whole and checked, continued where they stopped, or a clear error."""

from __future__ import annotations

import errno
import hashlib
import shutil

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.zoo import Remote
from parlai_safety.zoo import fetch as fetching
from parlai_safety.zoo.fetch import fetch, part_of

CONTENT = bytes(range(256)) * 40  # 10,240 bytes, and no two neighbours alike
OTHER = bytes(reversed(CONTENT))


def remote(site, *, content=CONTENT, known=True, size=True):
    site.files.setdefault("/model", content)
    digest = hashlib.sha256(content).hexdigest()
    return Remote(f"{site.url}/model", digest if known else None, len(content) if size else None, None)


def ranges(site):
    return [wanted for _, wanted, _ in site.asked]


def test_a_whole_file(site, tmp_path):
    part = fetch(remote(site), tmp_path)
    assert part.read_bytes() == CONTENT and ranges(site) == [None]
    assert fetch(remote(site), tmp_path) == part and len(site.asked) == 1, "what is there whole is not asked for"


@pytest.mark.parametrize("size", [True, False])
def test_a_broken_connection_goes_on_where_it_stopped(site, tmp_path, size):
    site.cuts = [1000, 500]
    part = fetch(remote(site, size=size), tmp_path)
    assert part.read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-", "bytes=1500-"]
    assert {same for *_, same in site.asked[1:]} == {'"one"'}


def test_a_download_that_keeps_breaking_is_kept_and_goes_on_in_the_next_call(site, tmp_path):
    site.cuts = [100] * fetching.ATTEMPTS
    with pytest.raises(SafetyError, match=r"broke off 4 times .* 400 bytes are here, and they are kept"):
        fetch(remote(site), tmp_path)
    assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
    assert ranges(site)[-1] == "bytes=400-"


def test_a_server_without_ranges_sends_the_whole_file(site, tmp_path):
    site.ranges, site.cuts = False, [1000]
    assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-"]


def test_a_file_that_changed_meanwhile_comes_from_its_beginning(site, tmp_path):
    """The part is of another file: If-Range finds out, even where no checksum is known."""
    site.files["/model"], site.cuts = OTHER, [1000] * fetching.ATTEMPTS
    unknown = remote(site, known=False, size=False)
    with pytest.raises(SafetyError, match="broke off"):
        fetch(unknown, tmp_path)
    site.files["/model"], site.etag = CONTENT, '"two"'
    assert fetch(unknown, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("etag", "asks"), [(None, None), ('W/"weak"', None)])
def test_without_checksum_and_name_nothing_is_continued(site, tmp_path, etag, asks):
    site.etag, site.cuts = etag, [1000]
    assert fetch(remote(site, known=False, size=False), tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, asks]


def test_a_damaged_beginning_is_thrown_away_once(site, tmp_path):
    expected = remote(site)
    site.etag = None
    part_of(expected, tmp_path).write_bytes(b"x" * 1000)
    assert fetch(expected, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == ["bytes=1000-", None]


def test_a_part_that_is_whole_already_and_of_unknown_size(site, tmp_path):
    expected = remote(site, size=False)
    part_of(expected, tmp_path).write_bytes(CONTENT)
    assert fetch(expected, tmp_path).read_bytes() == CONTENT


def test_a_rest_that_begins_elsewhere_is_not_taken(site, tmp_path):
    site.cuts, site.shift = [1000], 7
    assert fetch(remote(site, known=False, size=False), tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-", None]


def test_a_part_that_is_too_long_begins_anew(site, tmp_path):
    expected = remote(site, size=False)
    part_of(expected, tmp_path).write_bytes(CONTENT + b"more")
    assert fetch(expected, tmp_path).read_bytes() == CONTENT


def test_of_unknown_size_and_checksum_too_long_a_part_begins_anew(site, tmp_path):
    unknown = remote(site, known=False, size=False)
    site.cuts = [1000] * fetching.ATTEMPTS
    with pytest.raises(SafetyError, match="broke off"):
        fetch(unknown, tmp_path)
    part_of(unknown, tmp_path).write_bytes(CONTENT + b"more")
    assert fetch(unknown, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changes_between_two_attempts_is_fetched_once_more_from_nothing(site, tmp_path):
    site.etag, site.cuts = None, [1000]
    expected = remote(site)
    site.then = [lambda: site.files.update({"/model": OTHER}), lambda: site.files.update({"/model": CONTENT})]
    assert fetch(expected, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-", None]


def test_another_file_is_refused_and_not_kept(site, tmp_path):
    site.files["/model"] = OTHER
    with pytest.raises(SafetyError, match="gave a file with SHA-256 .* The registry expects"):
        fetch(remote(site), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_size_is_refused_before_it_is_downloaded(site, tmp_path):
    site.files["/model"] = CONTENT + b"more"
    with pytest.raises(SafetyError, match="has 10244 bytes. The registry expects 10240"):
        fetch(remote(site), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_breaks_in_a_file_with_other_content_ends(site, tmp_path):
    expected = remote(site)
    site.files["/model"], site.cuts = OTHER, [1000, 10_000] * 4
    with pytest.raises(SafetyError, match="gave a file with SHA-256"):
        fetch(expected, tmp_path)
    assert len(site.asked) == 4 and list(tmp_path.iterdir()) == [], "twice from nothing, each in two answers"


def test_a_body_without_end_stops_at_the_known_size(site, tmp_path):
    expected = remote(site)
    site.files["/model"], site.length = CONTENT * 100, False
    with pytest.raises(SafetyError, match="gives more than 10240 bytes. The registry expects 10240"):
        fetch(expected, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_short_body_without_a_length_goes_on(site, tmp_path):
    site.length, site.cuts = False, [1000]
    assert fetch(remote(site, known=False), tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-"]


@pytest.mark.parametrize("fault", [{"short": 100}, {"renamed": '"two"'}])
def test_a_rest_that_is_not_whole_or_of_another_file_is_not_taken(site, tmp_path, fault):
    site.cuts = [1000]
    vars(site).update(fault)
    assert fetch(remote(site, known=False, size=False), tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=1000-", None]


def test_a_part_whose_file_has_a_name_by_now_goes_on_where_the_checksum_is_known(site, tmp_path):
    expected = remote(site)
    part_of(expected, tmp_path).write_bytes(CONTENT[:1000])
    assert fetch(expected, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == ["bytes=1000-"]


def test_a_file_put_there_by_hand_needs_no_host(tmp_path):
    expected = Remote("http://127.0.0.1:1/model", hashlib.sha256(CONTENT).hexdigest(), None, None)
    part_of(expected, tmp_path).write_bytes(CONTENT)
    assert fetch(expected, tmp_path).read_bytes() == CONTENT


def test_where_nothing_is_known_no_file_is_to_be_put_there_by_hand(tmp_path):
    with pytest.raises(SafetyError, match=r"Try again later\.$"):
        fetch(Remote("http://127.0.0.1:1/model", None, None, None), tmp_path)


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file any more"), (403, "with status 403"), (503, "with status 503")]
)
def test_a_host_that_refuses_is_asked_once(site, tmp_path, status, words):
    site.status = status
    with pytest.raises(SafetyError, match=f"could not be downloaded .*{words}.* put the file by hand at"):
        fetch(remote(site), tmp_path)
    assert len(site.asked) == 1


def test_a_host_that_is_gone(tmp_path):
    with pytest.raises(SafetyError, match="could not be downloaded .*The host does not answer"):
        fetch(Remote("http://127.0.0.1:1/model", "a" * 64, 3, None), tmp_path)


def test_a_disk_without_room(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5000))
    with pytest.raises(SafetyError, match=r"has 5000 bytes left. The rest of .* needs 10240"):
        fetch(remote(site), tmp_path)


def test_a_disk_needs_room_for_the_rest_alone(site, tmp_path, monkeypatch):
    expected = remote(site)
    part_of(expected, tmp_path).write_bytes(CONTENT[:9000])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 2000))
    assert fetch(expected, tmp_path).read_bytes() == CONTENT


def test_a_disk_that_fills_meanwhile_keeps_what_is_there(site, tmp_path, monkeypatch):
    class Full:
        def __init__(self, **settings):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def update(self, count):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "tqdm", Full)
        with pytest.raises(SafetyError, match="The disk is full. Make room and type the command again"):
            fetch(remote(site), tmp_path)
    assert part_of(remote(site), tmp_path).stat().st_size > 0
    assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


def test_parts_of_two_files_of_one_name_do_not_mix(tmp_path):
    remotes = [
        Remote("http://example.org/model", "a" * 64, None, None),
        Remote("http://example.org/model", "b" * 64, None, None),
        Remote("http://example.org/model", None, None, None),
        Remote("http://example.org/other/model", None, None, None),
    ]
    assert len({part_of(one, tmp_path) for one in remotes}) == 4
