"""From text files to windows: what is read, held out, and seen when."""

import pytest
import torch

from edlm_engine.training.corpus import (
    evaluation_windows,
    read_text,
    split_held_out,
    text_files,
    training_windows,
    unwrap_text,
)


def test_each_epoch_takes_every_window_once():
    stream, length, batch = torch.arange(103, dtype=torch.int32), 10, 4
    count = (len(stream) - length + 1) // length
    steps = -(-count * 3 // batch)
    batches = [training_windows(stream, length, batch, step, seed=5) for step in range(steps)]
    windows = torch.cat(batches)
    assert torch.equal(windows, windows[:, :1] + torch.arange(length))
    offsets, orders = set(), set()
    for epoch in range(3):
        starts = windows[epoch * count : (epoch + 1) * count, 0]
        offsets.add(int(starts.min()))
        orders.add(tuple(starts.tolist()))
        expected = torch.arange(count) * length + starts.min()
        assert torch.equal(starts.sort().values, expected)
        assert not torch.equal(starts, expected)
    assert len(offsets) > 1 and len(orders) == 3
    assert torch.equal(training_windows(stream, length, batch, 6, seed=5), batches[6])
    assert not torch.equal(training_windows(stream, length, batch, 6, seed=6), batches[6])


def test_too_little_data_is_named():
    with pytest.raises(ValueError, match="at least 19 tokens, got 18"):
        training_windows(torch.zeros(18), 10, 2, 0, 0)
    with pytest.raises(ValueError, match="at least 10 tokens, got 9"):
        evaluation_windows(torch.zeros(9), 10, 4)


def test_evaluation_windows_spread():
    windows = evaluation_windows(torch.arange(100), 10, 4)
    assert windows[:, 0].tolist() == [0, 30, 60, 90]
    assert len(evaluation_windows(torch.arange(100), 10, 50)) == 10


def test_unwrap_joins_wrapped_lines():
    wrapped = (
        "CHAPTER I\n\n\nIt was a cold and windy night, and\nthe old house shook.  Nobody\n"
        "slept.\n\n“Who is there?” she asked.\n"
    )
    assert unwrap_text(wrapped) == (
        "CHAPTER I\nIt was a cold and windy night, and the old house shook. Nobody slept.\n"
        '"Who is there?" she asked.'
    )


def test_unwrap_finds_paragraphs_without_blank_lines():
    line = "a line of words as wide as the page is there\n"
    assert unwrap_text(line * 12 + "the end.\n" + line * 12).count("\n") == 1


def test_unwrap_keeps_paragraph_lines():
    paragraph = "word " * 60 + "end."
    assert unwrap_text(f"{paragraph}\n\n{paragraph}\n") == f"{paragraph}\n{paragraph}"


def test_data_is_split_by_name(data):
    files = text_files([data])
    assert [file.name for file in split_held_out(files, ["Ames_*"])[0]] == ["Bell_One.txt"]
    with pytest.raises(ValueError, match=r"held_out must match .*\['Cole_\*'\]"):
        split_held_out(files, ["Bell_*", "Cole_*"])
    with pytest.raises(FileNotFoundError, match=r"no text file or folder .*missing"):
        text_files([data / "missing"])


@pytest.mark.parametrize(
    ("data", "byte"),
    [
        ("un café".encode("latin-1"), "byte 6 is 0xe9"),
        ("text".encode("utf-16"), "byte 0 is 0xff"),
        ("text".encode("utf-16-le"), "byte 1 is 0x00"),
        (b"\xef\xbb\xbfgood \xff bad", "byte 8 is 0xff"),
    ],
)
def test_what_is_not_utf_8_is_named_with_its_byte(tmp_path, data, byte):
    (tmp_path / "book.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"book.txt is not UTF-8 text: {byte}"):
        read_text(tmp_path / "book.txt")


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path):
    (tmp_path / "book.txt").write_bytes("\ufeffone\r\ntwo\rthree é\n".encode())
    assert read_text(tmp_path / "book.txt", unwrap=False) == "one\ntwo\nthree é\n"
