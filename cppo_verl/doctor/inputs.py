"""The model and the recipe that the doctor was asked about: there, whole, and a run that would start."""

import json
import os
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from cppo_verl.doctor.verdicts import GB, Asked, Trouble, default_run_dir
from cppo_verl.errors import UserError
from cppo_verl.launch import overrides, paths

SCRIPTS = (Path("run_scripts"), Path(__file__).resolve().parents[2] / "run_scripts")
BYTES_A_PARAMETER = 12  # of a checkpoint: float32 weights and AdamW's two moments
HUB_TIMEOUT = 15  # seconds
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def recipe_overrides(recipe: str, model: str | None) -> list[str]:
    """What a script of run_scripts, by name or path, gives verl in this environment.
    UserError: no such script, or it refuses."""
    places = (Path(recipe), *(folder / f"{recipe}.sh" for folder in SCRIPTS))
    script = next((place for place in places if place.is_file()), None)
    if script is None:
        known = sorted({path.stem for folder in SCRIPTS for path in folder.glob("qwen3_*.sh")})
        raise UserError(f"no such recipe; there are: {', '.join(known) or 'none in this folder'}")
    environment = {**os.environ, "PYTHON": sys.executable, **({"MODEL_PATH": model} if model else {})}
    done = subprocess.run(["bash", str(script), "overrides"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError((done.stderr or done.stdout).strip() or f"{script} failed")
    return done.stdout.splitlines()


def ask(model: str | None, recipe: str | None) -> Asked:
    """What the checks compare with, of a model and of a recipe's composed config."""
    if recipe is None:
        return Asked(model, checkpoint_bytes=_checkpoint_bytes("", model))
    name = Path(recipe).stem
    try:
        config = overrides.compose(recipe_overrides(recipe, model))
    except UserError as error:
        return Asked(model, name, problem=" ".join(str(error).split()))
    path = OmegaConf.select(config, paths.MODEL)
    run_dir = default_run_dir() / ("" if os.environ.get("RUN") else f"{name}/{config.trainer.experiment_name}")
    return Asked(path, name, config, "", _checkpoint_bytes(name, path), run_dir)


def _checkpoint_bytes(name: str, path: str | None) -> float | None:
    from recipe.shapes import shape_of

    try:
        return BYTES_A_PARAMETER * shape_of(name, path or "").parameters
    except (ValueError, KeyError, OSError):  # a model of another kind
        return None


def model(asked: Asked) -> str:
    """The model is a whole folder, or a hub id that is downloaded or can be."""
    name = str(asked.model)
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return _whole(folder)
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise Trouble(f"{name}: no such folder, and no hub id of the form owner/name")
    return _from_hub(name)


def recipe(asked: Asked) -> str:
    """The recipe's own start checks pass, of its config and of this environment, and its data is there."""
    from cppo_verl.integration import checks

    if asked.config is None:
        problems = [asked.problem]
    else:
        remedy = "run: python -m data_prep.math_data --out data (or set TRAIN_FILE, VAL_FILES)"
        files = [Path(file) for key in paths.DATA for file in paths.files(asked.config, key)]
        missing = [f"no data at {file}; {remedy}" for file in files if not file.is_file()]
        problems = [*checks.run_problems(asked.config), *checks.here_problems(asked.config), *missing]
    if problems:
        raise Trouble("\n".join([f"{asked.recipe} would be refused", *problems]))
    gpus = f"{asked.config.trainer.nnodes} x {asked.config.trainer.n_gpus_per_node}"
    return f"{asked.recipe}: {gpus} GPUs; all that a run checks of its config holds, and its data is there"


def _whole(folder: Path) -> str:
    """What transformers and vLLM read of a model's folder."""
    if not (folder / "config.json").is_file():
        raise Trouble(f"{folder} has no config.json: not a model in Hugging Face's format")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise Trouble(f"{folder} has no tokenizer ({', '.join(TOKENIZERS)})")
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise Trouble(f"{folder} lacks {len(missing)} of {len(files)} weight files, such as {missing[0]}: copy it anew")
    weights = [folder / name for name in files] or [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights:
        raise Trouble(f"{folder} has no weights (*.safetensors)")
    return f"{folder}: {sum(path.stat().st_size for path in weights) / GB:.1f} GB of weights, whole"


def _from_hub(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return f"{name}, downloaded: {_whole(Path(snapshot_download(name, local_files_only=True)))}"
    except LocalEntryNotFoundError:
        pass
    try:
        found = HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - offline, unknown, gated, behind a proxy
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Trouble(
            f"{name} is not downloaded, and the hub did not give it ({type(error).__name__}: {reason}): copy the model "
            "to this machine and name its folder (MODEL_PATH=), or log in with `hf auth login` where it is gated"
        ) from None
    return f"{name} is on the hub (revision {str(found.sha)[:12]}), to be downloaded at the first start"
