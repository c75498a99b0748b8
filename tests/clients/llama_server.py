"""llama-server's API by the package xllamacpp, with a model file: `llama_server.py FILE PORT THREADS PARALLEL [TEMPLATE]`."""

import sys
import time

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
params.n_parallel = int(sys.argv[4])
# Room for a prompt and an answer of each sequence.
params.n_ctx = 1024 * int(sys.argv[4])
params.n_gpu_layers = 0
params.warmup = True
params.cont_batching = True
if len(sys.argv) > 5:
    params.use_jinja = True
    params.chat_template = open(sys.argv[5]).read()
server = xllamacpp.Server(params)
print("ready:", server.listening_address, xllamacpp.BUILD_INFO, flush=True)
while True:
    time.sleep(3600)
