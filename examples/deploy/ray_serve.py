"""moi behind Ray Serve: each replica runs `moi serve` at a socket of its own and passes bytes on.

    serve run examples.deploy.ray_serve:app            # or: python examples/deploy/ray_serve.py
    curl http://127.0.0.1:8000/v1/models

MOI_BINARY is the binary (`moi` where not given), MOI_ARGS more of its flags. On machines with GPUs give the deployment
`ray_actor_options={"num_gpus": 1}`, and MOI_ARGS="--device cuda".
"""

import asyncio
import os
import shlex
import signal
import subprocess
import tempfile

import httpx
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

# Headers of one connection, not of the answer.
HOPS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@serve.deployment(
    max_ongoing_requests=64,
    health_check_period_s=5,
    graceful_shutdown_timeout_s=60,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16},
)
class Moi:
    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self.directory.name, "moi.sock")
        self.start()
        transport = httpx.AsyncHTTPTransport(uds=self.socket)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://moi", timeout=None)

    def start(self):
        command = [os.environ.get("MOI_BINARY", "moi"), "serve", "--unix", self.socket]
        self.process = subprocess.Popen(command + shlex.split(os.environ.get("MOI_ARGS", "")))

    async def check_health(self):
        try:
            answer = await self.client.get("/livez")
        except httpx.TransportError:
            # It begins, or has ended and is begun again by the next request.
            return
        if answer.status_code != 200:
            raise RuntimeError("the engine is stuck")

    async def __call__(self, request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name not in HOPS]
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        while True:
            asked = self.client.build_request(request.method, target, headers=headers, content=await request.body())
            try:
                answer = await self.client.send(asked, stream=True)
                # The model is being loaded.
                if answer.status_code != 503 or (await self.client.get("/readyz")).status_code == 200:
                    break
                await answer.aclose()
            except httpx.TransportError:
                # Nothing of the answer has come, so the request may be sent again; where the process has ended, to another.
                if self.process.poll() is not None:
                    self.start()
            await asyncio.sleep(0.05)

        async def body():
            # Where the client leaves this is closed, and with it the connection, which cancels the answer.
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        headers = {name: value for name, value in answer.headers.items() if name not in HOPS}
        return StreamingResponse(body(), status_code=answer.status_code, headers=headers)

    def __del__(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=50)


app = Moi.bind()

if __name__ == "__main__":
    serve.run(app, blocking=True)
