"""What deploy/ says is true: commands, variables, ports, probes, references, hardening."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import httpx
import kubernetes_validate
import pytest
import typer
import yaml
from pydantic_settings import SecretsSettingsSource

from schemas import generate
from services.cli.main import app
from services.plumbing import migrate, region, settings, telemetry
from services.plumbing.db import Database
from services.plumbing.kafka import Link
from services.plumbing.settings import SERVICES, Settings
from services.plumbing.web import make_app

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = "kubernetes/base"
EXAMPLE = "kubernetes/overlays/example"
OPERATORS = {
    ("postgresql.cnpg.io/v1", "Cluster"),
    ("kafka.strimzi.io/v1", "Kafka"),
    ("kafka.strimzi.io/v1", "KafkaNodePool"),
    ("kafka.strimzi.io/v1", "KafkaUser"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
}
"""Kinds of operators, which Kubernetes itself has no schema of."""
MADE_BY_OPERATORS = {"passerelle", "passerelle-db-app", "passerelle-cluster-ca-cert"}
"""Secrets that Strimzi and CloudNativePG make."""
SETTINGS = {
    "ingest": settings.IngestSettings,
    "screening": settings.ScreeningSettings,
    "notify": settings.NotifySettings,
}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What secrets.sh makes, and the one secret that it leaves to the operator."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([DEPLOY / "secrets.sh", folder], check=True, capture_output=True)
    (folder / "notify/passerelle_oidc_client_secret").write_text("TEST-secret-of-the-authority")
    return folder


# Reading


def compose(deploy: Path) -> Mapping[str, Manifest]:
    services: Mapping[str, Manifest] = yaml.safe_load((deploy / "compose.yaml").read_text())[
        "services"
    ]
    return services


def ours(deploy: Path) -> Mapping[str, Manifest]:
    return {name: one for name, one in compose(deploy).items() if "build" in one}


def kustomization(deploy: Path, folder: str) -> Manifest:
    found: Manifest = yaml.safe_load((deploy / folder / "kustomization.yaml").read_text())
    return found


def manifests(deploy: Path) -> list[Manifest]:
    """All documents that the base and the example list."""
    return [
        document
        for folder in (BASE, EXAMPLE)
        for name in kustomization(deploy, folder)["resources"]
        if name.endswith(".yaml")
        for document in yaml.safe_load_all((deploy / folder / name).read_text())
    ]


def of_kind(deploy: Path, *kinds: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests(deploy) if one["kind"] in kinds}


def pods(deploy: Path) -> dict[str, Manifest]:
    return {
        name: one["spec"]["template"]["spec"]
        for name, one in of_kind(deploy, "Deployment", "Job").items()
    }


def containers(deploy: Path) -> list[Manifest]:
    return [container for pod in pods(deploy).values() for container in pod["containers"]]


def literals(deploy: Path) -> dict[str, str]:
    """The variables of the ConfigMap `passerelle`, as the example has them."""
    return dict(
        literal.split("=", 1)
        for folder in (BASE, EXAMPLE)
        for made in kustomization(deploy, folder)["configMapGenerator"]
        if made["name"] == "passerelle"
        for literal in made["literals"]
    )


def words(deploy: Path) -> Iterator[tuple[str, str]]:
    """File name and text of everything here."""
    for path in sorted(deploy.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(deploy)), path.read_text()


def dockerfile(deploy: Path) -> str:
    return (deploy / "Dockerfile").read_text()


# What must be true. Each is a function of a folder, so that it can be shown to fail.


def commands_exist(deploy: Path) -> None:
    command = typer.main.get_command(app)
    known = set(getattr(command, "commands"))  # noqa: B009 - click is typer's own here
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile(deploy), re.MULTILINE)
    assert json.loads(entry) == ["passerelle"]
    run = [one["command"] for one in ours(deploy).values()]
    run += [one["args"] for one in containers(deploy)]
    assert {words[0] for words in run} <= known


def variables_are_settings(deploy: Path) -> None:
    known = {f"PASSERELLE_{name}".upper() for name in Settings.model_fields}
    for name, text in words(deploy):
        used = set(re.findall(r"PASSERELLE_[A-Z_]+[A-Z]", text))
        used |= {word.upper() for word in re.findall(r"passerelle_[a-z_]+[a-z]", text)} - {
            f"PASSERELLE_{word.upper()}" for word in (*SERVICES, "owner")
        }
        assert used <= known, f"{name}: {used - known}"


def ports_are_served(deploy: Path) -> None:
    port = literals(deploy)["PASSERELLE_PORT"]
    assert f"PASSERELLE_PORT={port}" in dockerfile(deploy)
    assert f"EXPOSE {port}\n" in dockerfile(deploy)
    for name in SERVICES:
        service = compose(deploy)[name]
        assert service["environment"]["PASSERELLE_PORT"] == port
        assert all(one.split(":")[-1] == port for one in service["ports"])
        assert all(one.startswith("127.0.0.1:") for one in service["ports"])
        assert f"127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
        pod = of_kind(deploy, "Deployment")[f"passerelle-{name}"]["spec"]["template"]
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == port
        assert pod["spec"]["containers"][0]["ports"] == [
            {"name": "http", "containerPort": int(port)}
        ]
        for exposed in of_kind(deploy, "Service")[f"passerelle-{name}"]["spec"]["ports"]:
            assert exposed["targetPort"] == "http"
    for policy in of_kind(deploy, "NetworkPolicy").values():
        for rule in policy["spec"].get("ingress", ()):
            assert [one["port"] for one in rule["ports"]] == [int(port)]


def probed(deploy: Path) -> set[str]:
    """Every path that something asks of a service, to know how it is."""
    asked = set(re.findall(r"['\"}]?:?\}?(/health/\w+|/metrics)", dockerfile(deploy)))
    for name in SERVICES:
        asked |= set(re.findall(r":\d+(/[\w/]+)", compose(deploy)[name]["healthcheck"]["test"][-1]))
        pod = of_kind(deploy, "Deployment")[f"passerelle-{name}"]["spec"]["template"]
        asked.add(pod["metadata"]["annotations"]["prometheus.io/path"])
        (container,) = pod["spec"]["containers"]
        asked |= {
            container[probe]["httpGet"]["path"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        }
    return asked


def references_lead_somewhere(deploy: Path) -> None:
    for folder in (BASE, EXAMPLE):
        said = kustomization(deploy, folder)
        listed = {(deploy / folder / name).resolve() for name in said["resources"]}
        listed |= {
            (deploy / folder / name).resolve()
            for made in said["configMapGenerator"]
            for name in made.get("files", ())
        }
        there = set((deploy / folder).glob("*.yaml")) - {deploy / folder / "kustomization.yaml"}
        assert {one.resolve() for one in there} == {one for one in listed if one.is_file()}
        assert all(one.exists() for one in listed), listed
    example = kustomization(deploy, EXAMPLE)
    maps = {one["name"] for one in example["configMapGenerator"]}
    kept = {one["name"] for one in example["secretGenerator"]} | MADE_BY_OPERATORS
    accounts = of_kind(deploy, "ServiceAccount")
    for pod in pods(deploy).values():
        assert pod["serviceAccountName"] in accounts
        for volume in pod["volumes"]:
            assert volume.get("configMap", {}).get("name", "passerelle") in maps
            assert volume.get("secret", {}).get("secretName", "passerelle") in kept
        mounted = {
            mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    for container in containers(deploy):
        assert all(one["configMapRef"]["name"] in maps for one in container.get("envFrom", ())), (
            container
        )
        for variable in container.get("env", ()):
            assert variable["valueFrom"]["secretKeyRef"]["name"] in kept


def selectors_find_pods(deploy: Path) -> None:
    labels = [
        one["spec"]["template"]["metadata"]["labels"]
        for one in of_kind(deploy, "Deployment", "Job").values()
    ]
    chosen = [
        one["spec"]["selector"]
        for one in of_kind(deploy, "Service", "Deployment", "PodDisruptionBudget").values()
        if one["metadata"]["name"] != "passerelle-inside"
    ] + [one["spec"]["podSelector"] for one in of_kind(deploy, "NetworkPolicy").values()]
    for selector in chosen:
        assert any(selects(selector, label) for label in labels), selector
    denied = of_kind(deploy, "NetworkPolicy")["passerelle-deny"]["spec"]
    assert set(denied) == {"podSelector", "policyTypes"}
    assert set(denied["policyTypes"]) == {"Ingress", "Egress"}
    assert all(selects(denied["podSelector"], label) for label in labels)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    return all(labels.get(name) == value for name, value in wanted.items()) and all(
        one["key"] in labels and labels[one["key"]] in one.get("values", [labels[one["key"]]])
        for one in selector.get("matchExpressions", ())
    )


def the_outside_reaches_the_doors_alone(deploy: Path) -> None:
    (ingress,) = of_kind(deploy, "Ingress").values()
    services = of_kind(deploy, "Service")
    assert "selector" not in services["passerelle-inside"]["spec"]
    for rule in ingress["spec"]["rules"]:
        reached = {
            path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]
        }
        assert set(reached.values()) <= set(services) - {"passerelle-screening"}
        if "/" in reached:
            assert reached["/health"] == reached["/metrics"] == "passerelle-inside"


def our_containers_can_do_little(deploy: Path) -> None:
    assert re.findall(r"^USER (\d+):\d+$", dockerfile(deploy), re.MULTILINE)[-1] != "0"
    for name, one in ours(deploy).items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert not one["user"].startswith(("0:", "root")), name
    for pod in pods(deploy).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


def scaling_watches_what_is_read(deploy: Path) -> None:
    link = Link("", literals(deploy).get("PASSERELLE_KAFKA_PREFIX", ""))
    for scaled in of_kind(deploy, "ScaledObject").values():
        target = scaled["spec"]["scaleTargetRef"]["name"]
        assert target in of_kind(deploy, "Deployment")
        service = target.removeprefix("passerelle-")
        read = {link.topic(one.type) for one in generate.events() if service in readers(one)}
        for trigger in scaled["spec"]["triggers"]:
            assert trigger["metadata"]["consumerGroup"] == link.group(service)
            assert trigger["metadata"]["topic"] in read
            assert (
                trigger["metadata"]["bootstrapServers"]
                == literals(deploy)["PASSERELLE_KAFKA_BOOTSTRAP"]
            )
            assert trigger["authenticationRef"]["name"] in of_kind(deploy, "TriggerAuthentication")


def readers(event: type[Any]) -> set[str]:
    return set(generate.readers(event))


def kubernetes_accepts(deploy: Path) -> None:
    for one in manifests(deploy):
        if (one["apiVersion"], one["kind"]) in OPERATORS:
            assert one["metadata"]["name"]
            assert one["spec"]
        else:
            version = kubernetes_validate.latest_version()
            kubernetes_validate.validate(one, version, strict=True)


def no_secret_has_a_default(deploy: Path) -> None:
    assert not of_kind(deploy, "Secret")
    for name, text in words(deploy):
        for variable, rest in re.findall(r"\$\{(\w+)(:[^}]*)?\}", text if "yaml" in name else ""):
            assert rest.startswith(":?") or variable == "PASSERELLE_SCREENING_URL", variable
        assert not re.search(r"(?i)password[=:] *['\"]?\w{4,}$", text, re.MULTILINE), name


CHECKS = [
    commands_exist,
    variables_are_settings,
    ports_are_served,
    references_lead_somewhere,
    selectors_find_pods,
    the_outside_reaches_the_doors_alone,
    our_containers_can_do_little,
    scaling_watches_what_is_read,
    kubernetes_accepts,
    no_secret_has_a_default,
]

Check = Callable[[Path], None]
SEEN = (
    AssertionError,
    LookupError,
    kubernetes_validate.utils.ValidationError,
    kubernetes_validate.utils.SchemaNotFoundError,
)
"""As what a check fails."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_is_true(check: Check) -> None:
    check(DEPLOY)


@pytest.mark.parametrize(
    ("check", "file", "said", "planted"),
    [
        (commands_exist, f"{BASE}/ingest.yaml", "args: [ingest]", "args: [serve]"),
        (commands_exist, "compose.yaml", "command: [topics]", "command: [make-topics]"),
        (commands_exist, "Dockerfile", '["passerelle"]', '["python"]'),
        (variables_are_settings, "compose.yaml", "PASSERELLE_REGION:", "PASSERELLE_REGIO:"),
        (variables_are_settings, f"{EXAMPLE}/kustomization.yaml", "_ISSUER", "_ISSUERS"),
        (variables_are_settings, "secrets.sh", "passerelle_seal_keys", "passerelle_seals"),
        (ports_are_served, f"{BASE}/notify.yaml", "containerPort: 8080", "containerPort: 8003"),
        (ports_are_served, "compose.yaml", "8002:8080", "8002:8002"),
        (ports_are_served, f"{BASE}/network.yaml", "port: 8080", "port: 80"),
        (references_lead_somewhere, f"{BASE}/kustomization.yaml", "jobs.yaml", "job.yaml"),
        (references_lead_somewhere, f"{BASE}/kustomization.yaml", "  - scaling.yaml\n", ""),
        (references_lead_somewhere, f"{BASE}/notify.yaml", "passerelle-region", "the-region"),
        (selectors_find_pods, f"{BASE}/disruption.yaml", "passerelle-notify}", "notify}"),
        (selectors_find_pods, f"{BASE}/network.yaml", "- passerelle-topics", "- topics"),
        (the_outside_reaches_the_doors_alone, f"{EXAMPLE}/ingress.yaml", "/metrics", "/metric"),
        (the_outside_reaches_the_doors_alone, f"{EXAMPLE}/ingress.yaml", "-ingest", "-screening"),
        (our_containers_can_do_little, "Dockerfile", "USER 65532", "USER 0"),
        (our_containers_can_do_little, "compose.yaml", "read_only: true", "read_only: false"),
        (our_containers_can_do_little, f"{BASE}/jobs.yaml", "drop: [ALL]", "drop: []"),
        (scaling_watches_what_is_read, f"{BASE}/scaling.yaml", "topic: flag", "topic: flags"),
        (scaling_watches_what_is_read, f"{BASE}/scaling.yaml", "Group: passerelle-", "Group: "),
        (kubernetes_accepts, f"{BASE}/ingest.yaml", "readinessProbe", "readynessProbe"),
        (kubernetes_accepts, f"{BASE}/kafka.yaml", "kind: KafkaUser", "kind: KafkaUsers"),
        (no_secret_has_a_default, "compose.yaml", ":?the folder that secrets.sh", ":-/srv/"),
    ],
)
def test_it_would_be_seen_if_it_were_not(
    tmp_path: Path, check: Check, file: str, said: str, planted: str
) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / file
    assert said in path.read_text()
    path.write_text(path.read_text().replace(said, planted))
    with pytest.raises(SEEN):
        check(tmp_path / "deploy")


@pytest.mark.parametrize("service", SERVICES)
async def test_every_probed_path_is_served(service: str) -> None:
    assert probed(DEPLOY) == {"/health/live", "/health/ready", "/metrics"}
    db = Database("postgresql://nobody:nothing@127.0.0.1:1/none", service)
    transport = httpx.ASGITransport(make_app(service, db))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        answers = {path: (await client.get(path)).status_code for path in probed(DEPLOY)}
    assert answers == {"/health/live": 200, "/health/ready": 503, "/metrics": 200}
    await db.close()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_with_what_compose_gives_it(
    service: str, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in compose(DEPLOY)[service]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{.*\}", "https://example.ca", value))
    kind = SETTINGS[service]
    files = SecretsSettingsSource(kind, secrets / service)()
    read = kind(**files)
    assert read.database_url.get_secret_value().startswith(f"postgresql://passerelle_{service}:")
    needed = {name for name, field in kind.model_fields.items() if field.is_required()}
    assert set(files) == needed - {"region"} | {"checkpoint_key"}, "no more than it needs"


def test_the_keys_are_one_set_and_the_passwords_those_of_the_roles(secrets: Path) -> None:
    for name in ("token_keys", "seal_keys", "date_keys", "checkpoint_key"):
        kept = {path.read_text() for path in secrets.glob(f"*/passerelle_{name}")}
        assert len(kept) == 1
    passwords = json.loads((secrets / "migrate/passerelle_role_passwords").read_text())
    assert set(passwords) == set(SERVICES)
    for service, password in passwords.items():
        url = (secrets / service / "passerelle_database_url").read_text()
        assert url == f"postgresql://passerelle_{service}:{password}@postgres:5432/passerelle"


def test_secrets_that_exist_are_kept(secrets: Path) -> None:
    before = {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}
    subprocess.run([DEPLOY / "secrets.sh", secrets], check=True, capture_output=True)
    assert {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()} == before


def test_the_example_is_given_exactly_the_secrets_that_are_made(secrets: Path) -> None:
    for made in kustomization(DEPLOY, EXAMPLE)["secretGenerator"]:
        part = made["name"].removeprefix("passerelle-")
        there = {path.name for path in (secrets / part).iterdir()}
        if part == "migrate":  # the owner's address comes from CloudNativePG
            there.remove("passerelle_owner_database_url")
        assert set(made["files"]) == {f"{name}=secrets/{part}/{name}" for name in there}


def test_the_region_of_the_example_is_a_region() -> None:
    assert region.load(DEPLOY / EXAMPLE / "region.yaml").site("hospital-a") is not None


def test_the_image_is_made_of_what_is_there() -> None:
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile(DEPLOY), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (DEPLOY.parent / name).exists(), name
        assert f"!{name}\n" in (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert (DEPLOY / "secrets.sh").stat().st_mode & 0o100
    assert (DEPLOY / "initdb.sh").stat().st_mode & 0o100


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_the_example(tmp_path: Path, secrets: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    shutil.copytree(secrets, tmp_path / EXAMPLE / "secrets")
    built = subprocess.run(
        ["kubectl", "kustomize", tmp_path / EXAMPLE], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    for one in yaml.safe_load_all(built.stdout):
        if (one["apiVersion"], one["kind"]) not in OPERATORS:
            version = kubernetes_validate.latest_version()
            kubernetes_validate.validate(one, version, strict=True)


# The operators' handbook


HANDBOOK = DEPLOY.parent / "docs/operations.md"


def test_the_handbook_explains_every_setting_and_no_other() -> None:
    known = {f"PASSERELLE_{name}".upper() for name in Settings.model_fields}
    assert set(re.findall(r"PASSERELLE_[A-Z_]+[A-Z]", HANDBOOK.read_text())) == known


def test_the_handbook_names_metrics_that_exist() -> None:
    names = {
        f"passerelle_{name}"
        for kind in (telemetry.CounterName, telemetry.GaugeName, telemetry.HistogramName)
        for name in get_args(kind)
    }
    used = set(re.findall(r"`(passerelle_[a-z_]+)`", HANDBOOK.read_text()))
    roles = {migrate.AUDITOR, migrate.PURGER}
    assert used <= names | roles, used - names - roles
