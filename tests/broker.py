"""A real Apache Kafka for tests: one node, KRaft, on free loopback ports.

In this order: the broker at `KAFKA_BOOTSTRAP`; else Java 17 with the broker's jars by Maven,
kept in `~/.cache/passerelle`; else Docker. Where there is none of them the Kafka tests say in
one line that they were not run; with `PASSERELLE_REQUIRE_KAFKA=1` (CI) that is a failure.
"""

import asyncio
import base64
import os
import re
import shutil
import socket
import subprocess
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

VERSION: Final = "4.3.1"
ENVIRONMENT: Final[Mapping[str, str]] = os.environ  # noqa: TID251 (the tests' own settings)
CACHE: Final = Path.home() / ".cache" / "passerelle"
PATIENCE: Final = 90.0
"""Seconds a broker may take to answer; a loaded machine with two cores takes fifteen."""

POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>ca.example</groupId><artifactId>broker</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
    <version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""


class BrokerMissing(Exception):  # noqa: N818 (a fact about the machine, not an error of ours)
    """There is no way to have a broker here."""


class BrokerFailed(Exception):  # noqa: N818 (as above)
    """There should be one, and it did not do as it was told."""


class Broker(ABC):
    """A broker, and where it listens. Its data outlives `stop` and `start`, not `close`."""

    ours = True
    """False: somebody else's; it cannot be stopped."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    async def start(self) -> None:
        """Return when it answers a metadata request."""
        await self._launch()
        await self._answers()

    @abstractmethod
    async def _launch(self) -> None: ...

    @abstractmethod
    async def stop(self) -> None:
        """Away, as in a restart; the data stays."""

    @abstractmethod
    async def close(self) -> None:
        """Gone, with its data."""

    def _last_words(self) -> str | None:
        """What it said if it has ended by itself, so that waiting is of no use."""
        return None

    async def _answers(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                if (said := self._last_words()) is not None:
                    raise BrokerFailed(f"the test broker ended by itself:\n{said}")
                if await self._listens() and await self._knows_itself():
                    return
                await asyncio.sleep(0.2)

    async def _listens(self) -> bool:
        host, _, port = self.bootstrap.split(",")[0].rpartition(":")
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return True
        return False

    async def _knows_itself(self) -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
        except KafkaError:
            return False
        finally:
            await admin.close()


class GivenBroker(Broker):
    """The one at `KAFKA_BOOTSTRAP`."""

    ours = False

    async def _launch(self) -> None: ...

    async def stop(self) -> None:
        raise BrokerFailed("the broker at KAFKA_BOOTSTRAP is not ours to stop")

    async def close(self) -> None: ...


class JavaBroker(Broker):
    """A child process; it ends with its parent."""

    def __init__(self, folder: Path) -> None:
        self._port, self._control = free_ports(2)
        super().__init__(f"127.0.0.1:{self._port}")
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def _launch(self) -> None:
        properties = self._folder / "server.properties"
        if not properties.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            settings = node(self._port, self._control) | {"log.dirs": str(self._folder / "data")}
            properties.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            format_ = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
            formatting = await asyncio.create_subprocess_exec(
                *java(), *format_, stdout=subprocess.DEVNULL
            )
            if await formatting.wait() != 0:
                raise BrokerFailed("the storage of the test broker could not be formatted")
        with (self._folder / "broker.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *java(), "kafka.Kafka", str(properties), stdout=log, stderr=log
            )

    def _last_words(self) -> str | None:
        if self._process is None or self._process.returncode is None:
            return None
        return (self._folder / "broker.log").read_text(errors="replace")[-2000:]

    async def kill(self) -> None:
        """As a machine that loses power."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(30):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def close(self) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


class DockerBroker(Broker):
    """The image of the Apache Kafka project."""

    def __init__(self) -> None:
        self._port, self._control = free_ports(2)
        super().__init__(f"127.0.0.1:{self._port}")
        self._container: str | None = None

    async def _launch(self) -> None:
        if self._container is not None:
            await run("docker", "start", self._container)
            return
        settings = node(self._port, self._control) | {
            "listeners": f"PLAINTEXT://:{self._port},CONTROLLER://:{self._control}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
        }
        variables = [f"KAFKA_{k.upper().replace('.', '_')}={v}" for k, v in settings.items()]
        self._container = await run(
            *("docker", "run", "--detach", f"--publish=127.0.0.1:{self._port}:{self._port}"),
            *(word for variable in variables for word in ("--env", variable)),
            f"apache/kafka:{VERSION}",
        )

    async def stop(self) -> None:
        if self._container is not None:
            await run("docker", "stop", self._container)

    async def close(self) -> None:
        if self._container is not None:
            await run("docker", "rm", "--force", "--volumes", self._container)


def node(port: int, control: int) -> dict[str, str]:
    """Settings of a cluster of one, small and quick to start."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{control}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@127.0.0.1:{control}",
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
    }


def java() -> list[str]:
    """The start of a command line that runs a class of Kafka's."""
    bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return [*bound, "java", "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{CACHE / VERSION}/*"]


def fetch_jars() -> None:
    """Kafka and what it needs, by Maven, once a machine."""
    if (CACHE / VERSION).exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    work = CACHE / f"{VERSION}.{os.getpid()}"
    work.mkdir()
    (work / "pom.xml").write_text(POM)
    maven = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
    try:
        subprocess.run(maven, cwd=work, check=True, capture_output=True, timeout=600)
        with suppress(OSError):  # another process was quicker
            (work / "jars").rename(CACHE / VERSION)
    except subprocess.SubprocessError as error:
        raise BrokerMissing(f"Maven could not fetch Kafka ({type(error).__name__})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def has_java() -> bool:
    """Whether Java is 17 or newer, and Maven is there."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        return False
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    return found is not None and int(found[1]) >= 17


def has_docker() -> bool:
    """Whether a Docker daemon answers."""
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30)
    return asked.returncode == 0


async def run(*command: str) -> str:
    """The last word a command printed, having succeeded."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise BrokerFailed(f"{' '.join(command[:2])} failed")
    return said.decode().split()[-1] if said.strip() else ""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listened on a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in held]
    for listening in held:
        listening.close()
    return ports


def a_broker(folder: Path) -> Broker:
    """The best broker this machine allows, not started; its data in `folder` if it is a child."""
    if given := ENVIRONMENT.get("KAFKA_BOOTSTRAP"):
        return GivenBroker(given)
    if has_java():
        fetch_jars()
        return JavaBroker(folder)
    if has_docker():
        return DockerBroker()
    raise BrokerMissing("neither KAFKA_BOOTSTRAP, nor Java 17 with Maven, nor Docker")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """One broker for the whole run."""
    try:
        found = a_broker(tmp_path_factory.mktemp("kafka"))
    except BrokerMissing as missing:
        reason = f"Kafka tests were not run: {missing}."
        if ENVIRONMENT.get("PASSERELLE_REQUIRE_KAFKA") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    try:
        await found.start()
        yield found
    finally:
        await found.close()
