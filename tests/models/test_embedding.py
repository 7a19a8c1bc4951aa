"""The table: what it holds, that it survives its file, and that others can read that file."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from sureclr.config import PretrainConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.maths.sphere import evidence_matrix
from sureclr.models.embedding import (
    as_float,
    batch_for,
    collecting_blocks,
    embed,
    embed_blocks,
    evaluating,
)
from sureclr.models.simclr import SimCLR
from sureclr.progress import SilentProgress
from sureclr.training.building import build

N = 11


def images(n: int = N) -> ImageSet:
    pixels = torch.randint(
        0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    labels = torch.arange(n) // 2 % 3 - 1  # -1, 0, 1, in every split
    split = np.array(["train", "test", "unlabelled"] * n)[:n]
    return ImageSet(
        "mine", pixels, labels, ("cat", "dög"), split, [f"a/{i} é.png" for i in range(n)]
    )


def model(loss: str = "sure") -> SimCLR:
    config = PretrainConfig("mine", encoder="small-8", stem="cifar", projection_dim=6, loss=loss)
    made = build(config, 1, torch.tensor([0.4]), torch.tensor([0.3]))[0]
    if made.certainty is not None:
        torch.nn.init.normal_(
            made.certainty.body[-1].weight, generator=torch.Generator().manual_seed(0)
        )
    return made


@pytest.fixture(scope="module", params=["sure", "nt-xent", "tau"])
def table(request: pytest.FixtureRequest) -> Embeddings:
    return embed(
        model(request.param),
        images(),
        kernel_dimension=5.5 if request.param == "sure" else None,
        batch=4,
    )


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return (a is None and b is None) or (
        a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)
    )


def test_rows_are_what_the_model_says_of_each_image_alone() -> None:
    """In evaluation mode an image's row does not depend on the batch around it; seen are whole
    images over 255.
    """
    made, some = model(), images()
    table = embed(made, some, batch=4)
    made.eval()
    for i in range(N):
        features, posterior = made(some.images[i : i + 1].to(torch.float32) / 255)
        assert torch.allclose(table.features[i], features[0], atol=1e-5)
        assert torch.allclose(table.direction[i], posterior.direction[0], atol=1e-5)
        assert torch.allclose(table.radius[i], posterior.radius[0], atol=1e-5)
    assert float(table.radius.std()) > 0
    assert torch.allclose(table.posterior.mean, table.radius[:, None] * table.direction)


def test_file_gives_back_every_column(table: Embeddings, tmp_path: Path) -> None:
    table.save(tmp_path / "embeddings.parquet")
    back = Embeddings.read(tmp_path / "embeddings.parquet")
    for name in ("features", "direction", "radius", "certainty", "labels"):
        assert same(getattr(table, name), getattr(back, name)), name
    assert back.classes == table.classes and back.kernel_dimension == table.kernel_dimension
    assert list(back.paths) == list(table.paths) and back.split.tolist() == table.split.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["embeddings.parquet"]  # no draft left


def test_file_is_plain_parquet(table: Embeddings, tmp_path: Path) -> None:
    """Read by pyarrow alone, as a stranger to the package would."""
    from pyarrow import parquet

    table.save(tmp_path / "e.parquet")
    plain = parquet.read_table(tmp_path / "e.parquet")
    assert plain.num_rows == N
    row = plain.slice(3, 1).to_pylist()[0]
    assert row["path"] == "a/3 é.png" and row["split"] == "train" and row["label"] == 0
    assert np.array_equal(np.float32(row["features"]), table.features[3].numpy())
    assert np.array_equal(np.float32(row["direction"]), table.direction[3].numpy())
    assert ("radius" in row) == (table.radius is not None) and ("certainty" in row) == (
        table.certainty is not None
    )


def test_a_table_of_several_row_groups_reads_back(table: Embeddings, tmp_path: Path) -> None:
    """Another writer may cut it into pieces."""
    from pyarrow import parquet

    table.save(tmp_path / "e.parquet")
    parquet.write_table(
        parquet.read_table(tmp_path / "e.parquet"), tmp_path / "cut.parquet", row_group_size=3
    )
    assert same(Embeddings.read(tmp_path / "cut.parquet").direction, table.direction)


def test_select_and_labelled(table: Embeddings) -> None:
    rows = np.array([7, 2])
    some = table.select(rows)
    assert (
        len(some) == 2
        and some.paths == ["a/7 é.png", "a/2 é.png"]
        and torch.equal(some.features, table.features[[7, 2]])
    )
    assert (some.radius is None) == (table.radius is None)
    labelled = table.labelled("test")
    assert labelled.labels.min() >= 0 and set(labelled.split.tolist()) == {"test"}
    assert len(labelled) == sum(
        s == "test" and label >= 0
        for s, label in zip(table.split, table.labels.tolist(), strict=True)
    )


class Counting(SilentProgress):
    """Remembers the task and the numbers of parts done; stops the work if asked to."""

    def __init__(self, stops: bool = False) -> None:
        self.stops, self.totals, self.counts = stops, [], []

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.totals.append(total)

    def update(self, done: int, numbers: object = None) -> None:
        if self.stops:
            raise KeyboardInterrupt
        self.counts.append(done)


def test_progress_counts_images_and_may_stop() -> None:
    embed(model(), images(), batch=4, progress=(progress := Counting()))
    assert progress.counts == [4, 8, 11] and progress.totals == [11]
    made = model().train()
    with pytest.raises(KeyboardInterrupt):
        embed(made, images(), progress=Counting(stops=True))
    assert made.training  # and the mode came back


def test_blocks_are_the_encoders_halves_run_one_after_the_other() -> None:
    """Against the small encoder's own stages called by hand; rows chosen come in their order,
    whatever the batch.
    """
    made, some, rows = model().eval(), images(), np.array([7, 2, 9])
    found = embed_blocks(made, some, rows, batch=2)
    x = made.encoder.backbone.stem(
        (some.images[rows].float() / 255 - made.mean[:, None, None]) / made.std[:, None, None]
    )
    for name in ("layer1", "layer2", "layer3"):
        x = getattr(made.encoder.backbone, name)(x)
        assert torch.allclose(found[name], x.mean((2, 3)), atol=1e-5), name
        assert found[name].dtype == torch.float32 and not found[name].requires_grad
    assert list(found) == ["layer1", "layer2", "layer3"]
    assert torch.allclose(found["layer3"], embed(made, some).features[rows], atol=1e-5)


def test_blocks_leave_no_hook_count_images_and_may_be_stopped() -> None:
    made = model()
    embed_blocks(made, images(), batch=4, progress=(progress := Counting()))
    assert progress.counts == [4, 8, 11] and progress.totals == [11]
    with pytest.raises(KeyboardInterrupt):
        embed_blocks(made.train(), images(), progress=Counting(stops=True))
    assert made.training and not any(module._forward_hooks for module in made.modules())


def test_an_encoder_without_blocks_has_no_outputs_of_blocks() -> None:
    made = model()
    made.encoder.backbone = torch.nn.Flatten()
    assert embed_blocks(made, images()) == {}


class PretendedGpu(TorchFunctionMode):
    """A GPU that is none: writes down what would be sent to it, computed and waited for."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.counts = {"send": 0, "fetch": 0, "compute": 0, "event": 0}
        self.there: list[torch.Tensor] = []
        self.pinned: list[torch.Tensor] = []

    def note(self, word: str) -> None:
        self.log.append(f"{word} {self.counts[word]}")
        self.counts[word] += 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if function is torch.Tensor.to and args[1] == self.device:
            if not any(args[0] is tensor for tensor in self.there):
                assert kwargs["non_blocking"] and any(args[0] is t for t in self.pinned)
                self.note("send")
                self.there.append(args[0].clone())
                return self.there[-1]
            return args[0]
        if function is torch.Tensor.to and args[1] == "cpu":
            assert kwargs["non_blocking"]
            return args[0]
        if function is torch.Tensor.record_stream:
            return None
        return function(*args, **kwargs)

    # What stands in for torch.cuda.Stream

    def wait_stream(self, other: object) -> None:
        assert other is self

    def record_event(self) -> "PretendedEvent":
        self.counts["event"] += 1
        return PretendedEvent(self.log, self.counts["event"] - 1)


class PretendedEvent:
    def __init__(self, log: list[str], number: int) -> None:
        self.log, self.number = log, number

    def synchronize(self) -> None:
        self.log.append(f"wait {self.number}")


class OnPretendedGpu(torch.nn.Module):
    def __init__(self, inner: SimCLR, gpu: PretendedGpu) -> None:
        super().__init__()
        self.inner, self.gpu, self.device = inner, gpu, gpu.device

    def forward(self, pixels):
        self.gpu.note("compute")
        return self.inner(pixels)


def test_a_gpu_gets_the_next_batch_while_it_computes_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is waited for is the batch before the one that has just been given to it."""
    gpu, made = PretendedGpu(), model()

    @contextmanager
    def stream(chosen: object):
        assert chosen is gpu
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    with gpu:
        found = embed(OnPretendedGpu(made, gpu), images(), batch=4)
    assert gpu.log == [
        *("send 0", "send 1", "compute 0", "send 2", "compute 1", "wait 0"),
        *("compute 2", "wait 1", "wait 2"),
    ]
    assert found.digest == embed(made, images(), batch=4).digest


@pytest.mark.parametrize("way", ["embed", "embed_blocks"])
def test_batches_are_written_where_they_belong(way: str) -> None:
    """One batch of all images, and one batch for each image."""
    made, some = model(), images()
    if way == "embed":
        whole, single = (embed(made, some, batch=batch).features for batch in (N, 1))
    else:
        whole, single = (embed_blocks(made, some, batch=batch)["layer1"] for batch in (N, 1))
    assert whole.is_contiguous() and len(whole) == N
    assert torch.allclose(whole, single, atol=1e-5)


def test_evaluating_leaves_statistics_mode_and_gradients_alone() -> None:
    made = model().train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with evaluating(made):
        features, _ = made(torch.rand(3, 1, 8, 8))
    assert made.training and not features.requires_grad
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


def test_pixels_become_fractions() -> None:
    assert as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [0, 0.2, 1]
    )


def test_no_images_is_told() -> None:
    with pytest.raises(UserError, match="mine has no images"):
        embed(model(), images(0))


@pytest.mark.parametrize("content", ["text", "cut", "other"])
def test_a_damaged_table_is_told(content: str, table: Embeddings, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "e.parquet"
    table.save(path)
    if content == "other":
        parquet.write_table(pa.table({"x": [1]}), path)
    else:
        path.write_bytes(b"not a table" if content == "text" else path.read_bytes()[:-20])
    with pytest.raises(UserError, match="delete it and evaluate again") as caught:
        Embeddings.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [0, -1, 1.5, 10**12, float("nan"), "x"])
def test_batches_are_whole_numbers(batch: object) -> None:
    for function in (embed, embed_blocks):
        with pytest.raises(UserError, match="batch must be a whole number from 1 to 65,536"):
            function(model(), images(), batch=batch)  # type: ignore[operator]


def test_a_radius_of_1_in_a_table_has_finite_evidence() -> None:
    """A loss of a user may reach it, and float32 rounds to it; the gap counts as 1e-6."""
    direction = torch.nn.functional.normalize(torch.ones(3, 4), dim=1)
    radius = torch.tensor([0.0, 0.5, 1.0])
    table = Embeddings(
        torch.ones(3, 2), direction, radius, radius, torch.zeros(3).long(), ("a",),
        np.array(["train"] * 3), ["x", "y", "z"],
    )  # fmt: skip
    s = evidence_matrix(table.posterior, table.posterior)
    assert s.isfinite().all() and table.information is not None
    assert table.information.isfinite().all()
    assert torch.equal(table.posterior.radius, radius)
    assert torch.equal(table.posterior.gap[:2], (1 - radius)[:2])


@pytest.mark.parametrize(("side", "expected"), [(8, 256), (32, 64), (224, 9), (4000, 1), (1, 512)])
def test_a_cpu_embeds_few_large_images_at_once(side: int, expected: int) -> None:
    """2,048 rows of pixels, at most 512 images; any other device gets 512."""
    some = replace(images(1), images=torch.zeros(1, 1, side, side, dtype=torch.uint8))
    assert batch_for(torch.device("cpu"), some) == expected
    assert batch_for(torch.device("cuda"), some) == 512


@pytest.mark.parametrize("function", [embed, embed_blocks])
def test_without_a_batch_the_images_of_one_are_those_a_cpu_likes(function: object) -> None:
    made, some = model(), images(300)
    seen: list[int] = []
    hook = made.encoder.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    function(made, some)  # type: ignore[operator]
    hook.remove()
    assert seen == [256, 44]


def test_outputs_of_blocks_stay_on_the_device_until_the_end() -> None:
    """On `meta`, which cannot be read: a copy for each batch would wait for a GPU."""
    network, seen = model().to("meta"), set[tuple[int, ...]]()
    with pytest.raises(NotImplementedError, match="meta"), collecting_blocks(network) as parts:
        network.features(torch.rand(3, 1, 8, 8, device="meta"))
        network.features(torch.rand(2, 1, 8, 8, device="meta"))
        seen = {tuple(map(len, batches)) for batches in parts.values()}
    assert seen == {(3, 2)}
