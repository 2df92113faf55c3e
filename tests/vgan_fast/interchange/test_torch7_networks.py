import copy
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from lua_networks import DEPTH, FRAMES, LATENT, SIZE, WIDTH, Lua, dense, modules_of, run
from torch7_writer import Obj, Storage, View, written

from vgan_fast.checkpoint import find_checkpoint, load_weights
from vgan_fast.errors import UserError
from vgan_fast.interchange.torch7_networks import import_torch7
from vgan_fast.interchange.torch7_runs import save_run
from vgan_fast.losses import classify
from vgan_fast.models import (
    Discriminator,
    FutureGenerator,
    OneStreamGenerator,
    TwoStreamGenerator,
)
from vgan_fast.networks import build_discriminator, build_generator
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

TYPES = {
    "two_stream": TwoStreamGenerator,
    "one_stream": OneStreamGenerator,
    "conditional": FutureGenerator,
    "discriminator": Discriminator,
}
# Of the original's sizes: 32 frames of 64x64, by hand from the layers' shapes.
PARAMETERS = {
    "two_stream": 16_245_383,
    "one_stream": 12_663_619,
    "conditional": 68_216_455,
    "discriminator": 11_057_858,
}
SMALL = ClipShape(FRAMES, SIZE, WIDTH, LATENT)
EVERY = pytest.mark.parametrize("kind", list(TYPES))


@pytest.fixture
def imported(tmp_path):
    """The network of a tree, by way of a file."""

    def imported(tree, **how):
        file = tmp_path / "net.t7"
        file.write_bytes(written(tree, **how))
        return import_torch7(file)

    return imported


def only(imported):
    (network,) = imported.networks.values()
    return network


def inputs(kind, shape=SMALL):
    """For the original's network and for ours."""
    torch.manual_seed(1)
    if kind == "discriminator":
        clips = torch.rand(3, 3, shape.frames, shape.size, shape.size) * 2 - 1
        return clips, clips
    if kind == "conditional":
        frames = torch.rand(3, 3, shape.size, shape.size) * 2 - 1
        return frames, frames[:, :, None]
    latents = torch.randn(3, shape.latent)
    return latents, latents


@torch.no_grad()
def assert_as_torch7(imported, tree, kind, within=1e-5):
    theirs, ours = inputs(kind, imported.settings.shape)
    expected = run(tree, theirs)
    made = only(imported)(ours)
    made = made[0] if isinstance(made, tuple) else made
    if kind == "discriminator":
        expected = expected.flip(1)  # theirs: real, generated
    assert expected.std() > 0.1  # neither dead nor saturated
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= within * expected.abs().max().clamp(min=1)


def flattened(tree, cuda=True):
    """`getParameters`: all parameters are views into one storage, all gradients into another."""
    for names in (("weight", "bias"), ("gradWeight", "gradBias")):
        found = [(m, n) for m in modules_of(tree) for n in names if n in m.fields]
        arrays = [module.fields[name] for module, name in found]
        storage = Storage(np.concatenate([a.reshape(-1) for a in arrays]), cuda)
        offset = 0
        for (module, name), array in zip(found, arrays, strict=True):
            module.fields[name] = View(storage, array.shape, offset=offset)
            offset += array.size
    return tree


@EVERY
@pytest.mark.parametrize("package", ["nn", "cudnn"])
@pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ascii"])
def test_the_four_networks(imported, kind, package, ascii):
    tree = getattr(Lua(package=package), kind)()
    of = imported(tree, ascii=ascii)
    assert type(only(of)) is TYPES[kind] and not only(of).training
    assert_as_torch7(of, tree, kind)


@EVERY
@pytest.mark.parametrize("levels", [1, 3])
def test_more_and_fewer_layers(imported, kind, levels):
    lua = Lua(levels=levels, width=2, latent=5, depth=1)
    tree = getattr(lua, kind)()
    of = imported(tree)
    assert (of.settings.size, of.settings.frames) == (4 << levels, 1 << levels)
    assert_as_torch7(of, tree, kind)


@pytest.mark.slow
@EVERY
def test_the_original_s_sizes(imported, kind):
    tree = getattr(Lua(package="cudnn", levels=4, width=64, latent=100), kind)()
    for module in modules_of(tree):  # which would double the file
        module.fields = {n: v for n, v in module.fields.items() if not n.startswith("gradW")}
    flattened(tree)
    of = imported(tree)
    assert of.settings == Settings.chosen(
        "paper",
        {"model": of.settings.model, "data": "unknown", "logits": "2"},
    )
    assert sum(value.numel() for value in only(of).parameters()) == PARAMETERS[kind]
    assert_as_torch7(of, tree, kind)


@EVERY
def test_one_storage_on_a_gpu(imported, kind):
    tree = flattened(getattr(Lua(package="cudnn"), kind)())
    of = imported(tree)
    assert_as_torch7(of, tree, kind)
    # Each in memory of its own: neither a view into all of them, nor into the file.
    for value in only(of).parameters():
        assert value.untyped_storage().nbytes() == value.numel() * 4


def converted(tree, convert):
    for module in modules_of(tree):
        for name, value in module.fields.items():
            if isinstance(value, np.ndarray):
                module.fields[name] = convert(value)
    return tree


def backwards_in_memory(array):
    """A view whose axes lie in memory in opposite order, from the third element on."""
    storage = Storage(np.concatenate([np.zeros(2, "f4"), array.T.reshape(-1)]))
    sizes = array.shape
    return View(storage, sizes, [int(np.prod(sizes[:i])) for i in range(len(sizes))], 2)


@EVERY
@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array.astype("f8"),
        lambda array: array.astype("f2"),
        lambda array: View(Storage(array.astype("f2"), cuda=True), array.shape),
        lambda array: View(Storage(array.astype("f8"), cuda=True), array.shape),
        backwards_in_memory,
    ],
    ids=["double", "half", "cuda half", "cuda double", "strided"],
)
def test_other_elements_and_layouts(imported, kind, convert):
    tree = converted(getattr(Lua(), kind)(), convert)
    of = imported(tree)
    assert all(value.is_contiguous() for value in only(of).parameters())
    assert_as_torch7(of, tree, kind)


@EVERY
def test_files_before_there_were_versions(imported, kind):
    tree = getattr(Lua(), kind)()
    assert_as_torch7(imported(tree, versions=False), tree, kind)


@EVERY
def test_older_modules(imported, kind):
    tree = getattr(Lua(), kind)()
    older = copy.deepcopy(tree)
    for module in modules_of(older):
        fields = module.fields
        if module.name.endswith("BatchNormalization"):
            module.version = 1
            deviation = (fields.pop("running_var").astype("f8") + fields["eps"]) ** -0.5
            fields["running_std"] = deviation.astype("f4")
        if module.name == "nn.VolumetricFullConvolution":  # outputs first, no adj, other names
            fields["weight"] = fields["weight"].swapaxes(0, 1).copy()
            for axis in "THW":
                fields[f"p{axis}"] = fields.pop(f"pad{axis}")
                del fields[f"adj{axis}"]
    assert_as_torch7(imported(older), tree, kind)


def test_a_standard_deviation_of_a_constant_gives_no_negative_variance(imported):
    tree = Lua().one_stream()
    norm = tree.fields["modules"][2].fields
    norm["running_std"] = np.full_like(norm.pop("running_var"), norm["eps"] ** -0.5) * 1.001
    assert (only(imported(tree)).foreground[1].running_var == 0).all()


@EVERY
def test_without_bias_or_affine_map(imported, kind):
    tree = getattr(Lua(), kind)()
    for module in modules_of(tree):
        if module.name.endswith("Convolution"):
            del module.fields["bias"]
        if module.name.endswith("BatchNormalization"):
            del module.fields["weight"], module.fields["bias"]
    assert_as_torch7(imported(tree), tree, kind)


@EVERY
def test_modules_that_hand_on_their_input(imported, kind):
    lua = Lua()
    tree = getattr(lua, kind)()
    with_more = copy.deepcopy(tree)
    for module in list(modules_of(with_more)):
        if module.name == "nn.Sequential":
            for name in ("Copy", "Contiguous", "Identity"):
                module.fields["modules"].insert(1, lua.module(name))
            inner = lua.sequential(*module.fields["modules"][:3])
            module.fields["modules"][:3] = [inner]
    assert_as_torch7(imported(with_more), tree, kind)


def test_the_squeezed_dimension_may_be_named(imported):
    tree = Lua().two_stream()
    for module in modules_of(tree):
        if module.name == "nn.Squeeze":
            module.fields["dim"] = 2
    assert_as_torch7(imported(tree), tree, "two_stream")


def test_several_given_frames(imported):
    tree = Lua().conditional(given=2)
    of = imported(tree)
    assert of.settings.condition == 2
    with torch.no_grad():
        frames = torch.rand(3, 3, 2, SIZE, SIZE)
        assert torch.allclose(
            only(of)(frames)[0], run(tree, frames.flatten(1, 2)), atol=1e-5, rtol=0
        )


def test_the_streams_are_the_original_s(imported):
    tree = Lua().two_stream()
    latents, _ = inputs("two_stream")
    with torch.no_grad():
        foreground, mask, background = run(
            Obj("nn.Sequential", modules=tree.fields["modules"][:2]), latents
        )
        made = only(imported(tree)).streams(latents)
    for ours, theirs in (
        (made.foreground, foreground),
        (made.mask, mask),
        (made.background, background),
    ):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)


def test_the_discriminator_s_second_output_is_for_real_clips(imported):
    tree = Lua().discriminator()
    last = tree.fields["modules"][-2].fields
    last["weight"][:] = 0
    last["bias"][:] = 5, 0  # the original's label 1 is real: everything looks real
    clips, _ = inputs("discriminator")
    logits = only(imported(tree))(clips)
    as_real, as_generated = classify(logits.repeat(2, 1), [True, False])
    assert as_real < 0.01 and as_generated > 4


def test_sizes_are_read_off_the_weights(imported):
    lua = Lua()
    sizes = {"frames": FRAMES, "size": SIZE, "width": WIDTH}
    for kind, model in (
        *(("two_stream", "two-stream"), ("one_stream", "one-stream"), ("conditional", "future")),
        ("discriminator", "two-stream"),
    ):
        settings = imported(getattr(lua, kind)()).settings
        assert settings.model == model and settings.logits == "2" and settings.average == 0
        assert {name: getattr(settings, name) for name in sizes} == sizes
    assert imported(lua.two_stream()).settings.latent == LATENT
    assert imported(lua.discriminator(times=2)).settings.width == 8


def test_the_random_state_is_left_alone(imported):
    tree = Lua().two_stream()
    before = torch.random.get_rng_state()
    imported(tree)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_generator_and_its_discriminator(tmp_path):
    lua, run_folder = Lua(), tmp_path / "run"
    for kind in ("conditional", "discriminator"):
        tree = getattr(lua, kind)(*([2] if kind == "discriminator" else []))
        (tmp_path / f"{kind}.t7").write_bytes(written(tree))
    files = tmp_path / "discriminator.t7", tmp_path / "conditional.t7"
    both = import_torch7(*files)
    assert set(both.networks) == {"generator", "discriminator"}
    assert both.settings == import_torch7(files[1]).settings

    checkpoint = save_run(both, run_folder)
    assert find_checkpoint(run_folder) == checkpoint
    settings = Settings.load(checkpoint / "settings.json")
    assert settings == both.settings
    built = {"generator": build_generator(settings), "discriminator": build_discriminator(settings)}
    load_weights(checkpoint, built)
    for name, network in built.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, both.networks[name].state_dict()[key])
    stored = safetensors.torch.load_file(checkpoint / "weights.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32, torch.int64}
    assert json.loads((checkpoint / "settings.json").read_text())["model"] == "future"

    with pytest.raises(UserError, match="already holds a run"):
        save_run(both, run_folder)
    with pytest.raises(UserError, match="holds a generator, as the file before it does"):
        import_torch7(files[1], files[1])
    (tmp_path / "small.t7").write_bytes(written(lua.discriminator()))
    with pytest.raises(UserError, match=r"small\.t7: is of other sizes"):
        import_torch7(files[1], tmp_path / "small.t7")


def field(number, **values):
    """Change fields of the module of that number, as Torch prints nested ones."""

    def change(tree):
        at(tree, number).fields.update(values)

    return change


def at(tree, number):
    for i in number.split("."):
        tree = tree.fields["modules"][int(i) - 1]
    return tree


def insert(number, module):
    parent, _, i = number.rpartition(".")

    def change(tree):
        modules = (at(tree, parent) if parent else tree).fields["modules"]
        modules.insert(int(i) - 1, module)

    return change


def remove(number):
    parent, _, i = number.rpartition(".")

    def change(tree):
        del (at(tree, parent) if parent else tree).fields["modules"][int(i) - 1]

    return change


def scaled(number, name, shape):
    return field(number, **{name: np.ones(shape, "f4")})


TINY = Obj("nn.Dropout", p=0.5)
# A network, a change of it, and what is said: the layer by its number and class, what it is,
# and what was expected.
DIFFERENT = {
    "eps": (
        "two_stream",
        field("1.1.3", eps=1e-3),
        r"layer 1\.1\.3 \(nn\.VolumetricBatchNormalization\) is .* eps 0\.001; expected .*1e-05",
    ),
    "eps of the discriminator": (
        "discriminator",
        field("4", eps=1e-5),
        r"layer 4 .*eps 1e-05; expected .*eps 0\.001 there",
    ),
    "stride": (
        "two_stream",
        field("1.2.5", dW=1),
        r"layer 1\.2\.5 .*stride 2x1, .*; expected Spatial.* 8 -> 4, kernel 4x4, stride 2x2",
    ),
    "padding": ("discriminator", field("3", padT=0), "layer 3 .*padding 0x1x1.*; expected"),
    "adj": ("one_stream", field("5", adjH=1), "layer 5 .*adj 0x1x0; expected .*adj 0x0x0"),
    "slope": ("discriminator", field("2", negval=0.1), "LeakyReLU 0.1; expected LeakyReLU 0.2"),
    "activation": (
        "one_stream",
        insert("4", TINY),
        r"layer 4 \(nn\.Dropout\) is Dropout; exp.* ReLU",
    ),
    "no norm": ("conditional", remove("1.4"), r"layer 1\.4 \(nn\.ReLU\) is ReLU; expected Spatial"),
    "more after it": (
        "one_stream",
        insert("10", TINY),
        r"layer 10 \(nn\.Dropout\) is expected not",
    ),
    "more in a branch": (
        "two_stream",
        insert("1.2.10", TINY),
        r"layer 1\.2\.10 .*Dropout; expected the end of the branch",
    ),
    "less at the end": ("two_stream", remove("4"), "ends where CAddTable is expected"),
    "third branch": ("two_stream", insert("1.3", TINY), "is ConcatTable of 3; expected .* of 2"),
    "view": ("discriminator", remove("7"), "ends where View 2 is expected"),
    "other view": (
        "conditional",
        field("2.1.1", size=Storage(np.array([-1, 1, 16, 4, 4]))),
        r"View -1x1x16x4x4; expected View -1x16x1x4x4",
    ),
    "selected": ("two_stream", field("3.1.1.1", index=2), "SelectTable 2; expected SelectTable 1"),
    "mask over time": (
        "two_stream",
        field("3.1.1.2.3", dim=3),
        "Replicate 3 along 3; expected Replicate 3 along 2",
    ),
    "frames": (
        "conditional",
        field("4.2.1.1.2", nfeatures=32),
        "Replicate 32 along 3; expected Replicate 8 along 3",
    ),
    "squeezed": ("two_stream", field("3.1.1.2.2", dim=3), "Squeeze 3; expected Squeeze 2"),
    "no dimension": (
        "two_stream",
        field("3.1.1.2.2", dim=np.ones(3)),
        r"layer 3\.1\.1\.2\.2 .*has no number dim",
    ),
    "no sizes": ("one_stream", field("1", size="x"), "layer 1 .*has no size"),
    "many sizes": ("one_stream", field("1", size=np.ones(10**5)), r"View (1\.0x){31}1\.0; exp"),
    "sign": ("two_stream", field("3.2.1.2.3", constant_scalar=1), "MulConstant 1; expected .* -1"),
    "one": ("two_stream", field("3.2.1.2.4", constant_scalar=2), "AddConstant 2; expected .* 1"),
    "product": (
        "two_stream",
        lambda tree: setattr(at(tree, "3.1.2"), "name", "nn.CAddTable"),
        "CAddTable; expected CMulTable",
    ),
    "channels": (
        "one_stream",
        scaled("5", "weight", (8, 5, 4, 4, 4)),
        r"layer 5 .*8 -> 5, .*expected .*8 -> 4",
    ),
    "outputs": (
        "discriminator",
        scaled("6", "weight", (101, 8, DEPTH, 4, 4)),
        "8 -> 101.*expected .*8 -> 2",
    ),
    "kernel": (
        "discriminator",
        scaled("3", "weight", (8, 4, 4, 4, 3)),
        "kernel 4x4x3.*expected .*kernel 4x4x4",
    ),
    "bias": ("one_stream", scaled("2", "bias", 7), r"layer 2 .*has a bias of shape \[7\], not 8"),
    "norm's weight": ("one_stream", scaled("3", "weight", (2, 4)), r"weight of shape \[2, 4\]"),
    "norm's size": ("one_stream", scaled("3", "running_mean", 4), "of 4, eps 1e-05; expected .* 8"),
    "no mean": ("one_stream", field("3", running_mean=None), "has no running_mean"),
    "no variance": ("one_stream", field("3", running_var=None), "has no running_var"),
    "no weights": ("one_stream", field("5", weight=[1, 2]), "layer 5 .*has no weight"),
    "flat weights": ("one_stream", scaled("5", "weight", 8), r"weights of shape \[8\]"),
    "whole numbers": (
        "one_stream",
        field("5", weight=np.ones((8, 4, 4, 4, 4), "i4")),
        "weight of torch.int32",
    ),
    "not finite": (
        "one_stream",
        field("2", bias=np.full(8, np.nan, "f4")),
        "layer 2 .*bias that is not finite",
    ),
    "beyond fp32": ("one_stream", field("2", bias=np.full(8, 1e300)), "bias that is not finite"),
    "negative variance": ("one_stream", scaled("3", "running_var", 8), None),
    "no number": ("one_stream", field("5", dW="2"), "layer 5 .*has no number dW"),
    "no slope": ("discriminator", field("2", negval=None), "has no number negval"),
    "no modules": ("two_stream", field("1.1", modules=3), r"layer 1\.1 .*has no list of modules"),
    "a gap": (
        "two_stream",
        field("1.1", modules={1: Obj("nn.Tanh"), 3: Obj("nn.Tanh")}),
        "has no list of modules",
    ),
    "no module": (
        "two_stream",
        field("1.1", modules=["nn.Tanh"]),
        r"no network .* at layer 1\.1\.1",
    ),
    "frames of no network": (
        "one_stream",
        scaled("2", "weight", (LATENT, 8, 3, 4, 4)),
        "holds no network of VGAN: --frames 12: must be a power of two",
    ),
    "no stride-2 layer": (
        "discriminator",
        lambda tree: [remove("3")(tree) for _ in range(3)],
        "holds no network of VGAN: --frames 4|layer",
    ),
    "odd width": (
        "conditional",
        scaled("1.1", "weight", (9, 3, 4, 4)),
        "its encoder begins with 3 -> 9 channels",
    ),
    "of another program": (
        "two_stream",
        lambda tree: setattr(at(tree, "1"), "name", "nn.Linear"),
        r"holds no network of VGAN: it begins with layer 1 \(nn\.Linear\)",
    ),
    "nothing": ("two_stream", field("1.1", modules=[]), "it has no nn.VolumetricFullConvolution"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_first_layer_that_differs_is_named(imported, name):
    kind, change, message = DIFFERENT[name]
    tree = getattr(Lua(), kind)()
    change(tree)
    if name == "negative variance":
        at(tree, "3").fields["running_var"][:] = -1
        message = "layer 3 .*negative running_var"
    with pytest.raises(UserError, match=rf"net\.t7: .*{message}") as refused:
        imported(tree)
    assert "\n" not in str(refused.value)


def test_a_module_in_two_places_or_in_itself_is_refused(imported):
    lua = Lua()
    twice, itself = lua.one_stream(), lua.one_stream()
    twice.fields["modules"][6] = twice.fields["modules"][3]
    itself.fields["modules"].append(itself)
    deep = lua.one_stream()
    for _ in range(40):
        deep = lua.sequential(deep)
    for tree, number in ((twice, "7"), (itself, "10"), (deep, r"(1\.){32}1")):
        with pytest.raises(UserError, match=f"layer {number} stands in two places, or too deep"):
            imported(tree)


@pytest.mark.parametrize("value", [None, 3, "text", {"net": 1}, [Obj("nn.Tanh")], np.ones(3)])
def test_files_of_something_else(imported, value):
    with pytest.raises(UserError, match=r"net\.t7: holds no network of Torch7"):
        imported(value)


def test_a_small_file_cannot_ask_for_a_large_network(imported):
    tree = Lua().one_stream()
    # 2**40 weights by repeating one.
    at(tree, "2").fields["weight"] = View(
        Storage(np.ones(1, "f4")), [2**20, 2**20, 2, 4, 4], 5 * [0]
    )
    with pytest.raises(UserError, match=r"layer 2 .*has no weight"):
        imported(tree)
    assert dense(View(Storage(np.arange(4, dtype="f4")), [2], [2], 1)).tolist() == [1, 3]
