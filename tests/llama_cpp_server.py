"""llama-cpp-python's own server, on processors with AMX too.

A llama.cpp that an older GCC compiled crashes there when it repacks weights, which the server has
no option against.
"""

from llama_cpp import llama_cpp
from llama_cpp.server.__main__ import main

_defaults = llama_cpp.llama_model_default_params


def _without_repacking():
    params = _defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_model_default_params = _without_repacking
main()
