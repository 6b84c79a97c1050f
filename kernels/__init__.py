"""The Triton kernels: one file per op, forward and gradient together; a launcher takes what the op's reference takes.

``head_loss``, ``sample_latents``, ``image_batch``, ``pack_codes`` and ``unpack_codes`` hold one kernel each;
``elementary`` and ``philox`` hold the functions that they share. Nothing here knows of modules, of training or of other
backends: the op files in ``fastinfogan.ops`` choose. A launcher reads no tensor on the host, so it can be captured in a
CUDA graph once it has run, and so compiled, outside of one.
"""
