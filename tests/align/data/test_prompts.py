"""Prompts as a batch source: order, indices, resumption, the cut over processes, and what users get wrong."""

from itertools import islice

import pytest

from align.data._base import micro_batches
from align.data.prompts import Prompts, PromptsConfig, load_prompts
from align.errors import UserError

NAMES = [f"prompt {i}" for i in range(7)]


def source(prompts=NAMES, batch_size=3, seed=0):
    return Prompts(PromptsConfig(prompts=prompts), batch_size=batch_size, seed=seed)


def test_each_epoch_holds_every_prompt_once_in_an_order_of_its_own():
    stream = [p for batch in islice(source(), 14) for p in batch.prompts]  # 42 prompts: 6 epochs
    epochs = [stream[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == NAMES for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = [p for batch in islice(source(batch_size=6), 7) for p in batch.prompts]
    assert again == stream  # the batch size cuts the stream and does not change it
    assert [p for batch in islice(source(seed=1), 14) for p in batch.prompts] != stream


def test_indices_number_the_samples_of_the_run():
    batches = list(islice(source(), 3))
    assert [batch.indices for batch in batches] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert [batch.step for batch in batches] == [0, 1, 2]


def test_more_rows_than_prompts():
    (batch,) = islice(source(["only"], batch_size=4), 1)
    assert batch.prompts == ("only",) * 4 and batch.indices == (0, 1, 2, 3)


def test_a_resumed_source_goes_on_where_it_was():
    first = source()
    stream = iter(first)
    next(stream)
    state = first.state_dict()
    expected = [next(stream) for _ in range(5)]
    other = source()
    other.load_state_dict(state)
    assert list(islice(other, 5)) == expected


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("size", [None, 1, 2, 8])
def test_the_cut_loses_and_repeats_nothing(rows, num_processes, size):
    (batch,) = islice(source(batch_size=rows), 1)
    shares = [micro_batches(batch, size, rank=r, num_processes=num_processes) for r in range(num_processes)]
    assert [i for share in shares for piece in share for i in piece.indices] == list(batch.indices)
    assert all(0 < len(piece) <= (size or rows) for share in shares for piece in share)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_files(tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_bytes("\ufeffa café\n\n  a star \r\n".encode())
    lines.write_text('{"prompt": "a café"}\n\n{"prompt": "a star", "id": 3}\n', encoding="utf-8")
    assert load_prompts(str(text), key="k") == load_prompts(str(lines), key="k") == ["a café", "a star"]
    assert load_prompts(str(text), key="k", count=1) == ["a café"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b"\n \n", "no prompts in"),
        ("latin.txt", "a caf\xe9".encode("latin-1"), "byte 5 (line 1) is not UTF-8"),
        ("broken.jsonl", b'{"prompt": "a"}\nnot json\n', "line 2 is not JSON"),
        ("keyless.jsonl", b'{"text": "a"}\n', "line 1 has no text under the key prompt"),
        ("image.png", b"", "prompts come from a .txt, .jsonl, .csv, .tsv or .json file"),
    ],
)
def test_files_that_cannot_be_used_say_where_and_why(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_prompts(str(path), key="data.prompts")
    assert (
        said in str(caught.value) and str(caught.value).startswith("data.prompts: ") and str(path) in str(caught.value)
    )
    assert list(PromptsConfig(prompts=str(path)).conflicts({})) == [(".prompts", str(caught.value)[14:])]


def test_an_empty_prompt_in_a_list_is_refused():
    with pytest.raises(UserError, match=r"data.prompts: prompt 2 of 2 is empty"):
        source(["a", "  "])
    with pytest.raises(UserError, match=r"data.prompts: .*shapes:trian.*shapes:train, shapes:select, shapes:report"):
        source("shapes:trian")
