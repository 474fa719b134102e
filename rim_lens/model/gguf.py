"""GGUF files: dequantized once by transformers into a safetensors folder in the cache, loaded from there afterwards.

transformers converts a GGUF's tokenizer anew at every load, which takes some ten seconds; the folder takes one.
"""

import hashlib
from pathlib import Path

from rim_lens.cache import cache_folder, filled_once, is_filled
from rim_lens.errors import RimLensError
from rim_lens.model.gguf_metadata import GgufFile
from rim_lens.model.whole_weights import check_loaded
from rim_lens.progress import announce

MAGIC = b"GGUF"
VERSION = 2  # of the conversion: folders that an earlier one wrote are not read


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def converted_gguf(path: Path) -> Path:
    """Folder with the float32 weights and the tokenizer of a GGUF file, converted at the first call.

    Raises:
        RimLensError: the file is not a GGUF file, is truncated or of a family that transformers cannot read.

    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise RimLensError(f"{path} is not a GGUF file (it does not start with 'GGUF'); check the download.")
    folder = cache_folder() / "gguf" / f"{sha256_of(path)[:24]}-{VERSION}"
    if not is_filled(folder):
        announce(f"Converting {path.name} to float32: a minute or more, once (kept in {folder}).")
        with filled_once(folder) as work:
            convert_gguf(path, work)
    return folder


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the dequantized float32 model and its tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        file = GgufFile(path)
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        file.set_rope(config)
        file.check(config)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, output_loading_info=True
        )
        check_loaded(model, info, str(path))
        file.check_tensors(model)
    except RimLensError:
        raise
    except Exception as error:  # the reader raises whatever a cut file makes it trip over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RimLensError(
            f"The GGUF file {path} could not be read ({reason}); it is truncated, corrupt or of an unsupported "
            "family: download it again or use a safetensors folder."
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
