"""Compiles every kernel for a GPU that need not be there: compile_kernels.py BACKEND ARCHITECTURE WARP_SIZE.

Prints a line a kernel: its name, the bytes of its binary and of shared memory.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from toolprm_decode.kernels import attention, copying, sampling

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

STRIDES = ("query_head", "query_token", "key_head", "key_slot", "value_head", "value_slot")


def kernels(backend: str) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Name, kernel, types of its arguments by name, and its constants with the launch options."""
    tables = ("tiles", "readings", "tables", "positions")
    shapes = [  # query heads a key head, widths of keys and values
        (7, 64, 64, torch.float32),  # Qwen2.5-0.5B
        (7, 128, 128, torch.bfloat16),  # Qwen2.5-7B
        (2, 256, 256, torch.bfloat16),  # Gemma 2
        (1, 192, 128, torch.bfloat16),  # DeepSeek
        (1, 96, 96, torch.float16),  # Phi-3 mini
    ]
    for (group, dim, dim_v, dtype), large in itertools.product(shapes, (False, True)):
        rows = attention.rows_of_tiles(group)[large]
        types = dict.fromkeys(("query", "keys", "values"), POINTERS[dtype])
        types |= dict.fromkeys(("out", "lse"), "*fp32") | dict.fromkeys(tables, "*i32")
        types |= {"scale": "fp32", "softcap": "fp32", "window": "i32"} | dict.fromkeys(STRIDES, "i32")
        special = large and dim == 256  # what Gemma 2 has
        options = attention.tile_options(group, dim, dim_v, rows, dtype.itemsize)
        options |= {"SOFTCAP": special, "WINDOW": special, "UPCAST": False}
        if backend == "hip":
            options["PRECISION"] = "ieee"
        yield f"tiles {dim}x{dim_v} {rows} rows {POINTERS[dtype]}", attention._tiles_kernel, types, options
    for dtype, sinks in ((torch.float32, False), (torch.bfloat16, True)):
        types = {"parts_out": "*fp32", "parts_lse": "*fp32", "parts": "*i32", "sinks": POINTERS[dtype]}
        types |= {"out": POINTERS[dtype], "heads": "i32"}
        options = {"DV": 96, "BLOCK_DV": 128, "HEADS": 4, "SINKS": sinks}
        yield f"merge {POINTERS[dtype]}", attention._merge_kernel, types, options
    given = {"stride": "i32", "ids": "*i32", "masks": "*i32", "mask_index": "*i32", "temperatures": "*fp32"}
    sums = dict.fromkeys(("tops", "plain", "heated"), "*fp32")
    size = {"width": "i32", "words": "i32"}
    for dtype, ids in ((torch.float32, True), (torch.bfloat16, False)):
        logits = {"logits": POINTERS[dtype], **given, **sums}
        kind = f"{POINTERS[dtype]}{' of some ids' if ids else ''}"
        chunk = {"CHUNK": sampling.CHUNK, "IDS": ids}
        yield f"sum {kind}", sampling._sum_kernel, logits | size, chunk
        size_of_row = size | {"chunks": "i32"}
        types = logits | {"rows": "*i32", "samples": "*i32", "uniforms": "*fp64", "drawn": "*fp64"} | size_of_row
        yield f"independent draws {kind}", sampling._independent_kernel, types, chunk | {"CHUNKS": 256}
        types = logits | {"rows": "*i32", "firsts": "*i32", "counts": "*i32", "methods": "*u8", "drawn": "*fp64"}
        types |= dict.fromkeys(("uniforms", "gumbel_uniforms", "parents"), "*fp64") | size_of_row
        options = chunk | {"CHUNKS": 256}
        yield f"draws in turn {kind}", sampling._in_turn_kernel, types | {"taken": "*i32"}, options
    for bits in (16, 64):
        types = {"pools": "*i64", "copies": "*i32", "pool_head": "i32"}
        yield f"copy {bits} bits", copying._copy_kernel, types, {"WIDTH": 128, "BITS": bits, "BLOCK": 256}


def main(backend: str, architecture: str, warp_size: str) -> None:
    arch = int(architecture) if architecture.isdigit() else architecture
    target = GPUTarget(backend, arch, int(warp_size))
    for name, kernel, types, constants in kernels(backend):
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
        signature = {key: "constexpr" if key in constants else types[key] for key in kernel.arg_names}
        # As at a launch on tensors of whole blocks: addresses and strides are multiples of 16.
        whole = [i for i, key in enumerate(signature) if signature[key][0] == "*" or key in STRIDES]
        attributes = {(i,): [["tt.divisibility", 16]] for i in whole}
        source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=target, options=options)
        binary = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
        print(f"{name}: {len(binary)} bytes, {compiled.metadata.shared} of shared memory", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
