"""The files in deploy/ and docker-compose.yml, by what they say: nothing here has a container to run them in."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from esper.cli import grow, main
from esper.configs import EsperConfig
from esper.configs.checks.cache import ACL
from esper.configs.templates import template

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
SERVERS = ("postgres", "redis", "minio")
ONCE = ("prepare", "minio-setup")  # they end
OBJECTS = [
    (path.name, item)
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for item in yaml.safe_load_all(path.read_text())
]
PODS = {
    item["metadata"]["name"]: item["spec"]["template"]
    for _, item in OBJECTS
    if item["kind"] in ("StatefulSet", "Deployment", "Job")
}
CONTAINERS = [
    (f"{pod}/{container['name']}", container)
    for pod, template in PODS.items()
    for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]
]
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
MADE = {
    "ca.key",
    *("ca.pem", "postgres.pem", "postgres.key", "redis.pem", "redis.key", "minio.pem", "minio.key", "users.acl"),
    *("postgres_admin_password", "database_password", "redis_password", "minio_root_user", "minio_root_password"),
    *("storage_access_key", "storage_secret_key"),
}


def pinned(image):
    name, _, tag = image.partition(":")
    return bool(name and re.search(r"\d+\.\d+|RELEASE\.\d{4}-\d\d-\d\d", tag)) and "latest" not in tag


# ---- secrets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([DEPLOY / "secrets.sh", folder], check=True)
    return folder


def test_the_script_makes_every_secret_that_is_named_and_for_us_alone(secrets):
    names = {path.name for path in secrets.iterdir()} - {"ca.srl"}
    assert names == MADE
    assert {oct(path.stat().st_mode & 0o077) for path in secrets.iterdir()} == {"0o0"}
    texts = [path.read_text() for path in secrets.iterdir() if path.name.endswith(("password", "secret_key"))]
    assert len(set(texts)) == len(texts) == 5 and all(len(text) >= 48 and text.strip() == text for text in texts)


def test_the_script_keeps_what_is_there(secrets):
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    subprocess.run([DEPLOY / "secrets.sh", secrets], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before


def test_the_script_says_when_the_key_of_the_authority_is_away(secrets, tmp_path):
    """docs/operations.md has it kept elsewhere; it is only needed where something is to be signed."""
    folder = shutil.copytree(secrets, tmp_path / "secrets")
    (folder / "ca.key").unlink()
    subprocess.run([DEPLOY / "secrets.sh", folder], check=True)
    (folder / "redis.pem").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run([DEPLOY / "secrets.sh", folder], capture_output=True, text=True)
    assert done.returncode == 1 and "redis.pem is to be signed" in done.stderr and "bring ca.key back" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", SERVERS)
def test_certificates_name_their_server_and_are_signed(secrets, name):
    verify = ["openssl", "verify", "-CAfile", secrets / "ca.pem", "-verify_hostname", name, secrets / f"{name}.pem"]
    assert subprocess.run(verify, capture_output=True).returncode == 0
    other = [*verify[:5], "elsewhere", verify[-1]]
    assert subprocess.run(other, capture_output=True).returncode != 0


def test_redis_is_told_a_hash_and_what_check_asks_for(secrets):
    acl = (secrets / "users.acl").read_text()
    assert (secrets / "redis_password").read_text() not in acl
    (esper,) = [line for line in acl.splitlines() if line.startswith("user esper ")]
    assert esper.endswith(" " + ACL.format(prefix="esper"))
    assert "user default off" in acl


def test_no_secret_stands_in_a_file():
    """Whatever is called a password, key or token is the path of a file."""
    files = [ROOT / "docker-compose.yml", *(path for path in DEPLOY.rglob("*") if path.is_file())]
    files = [path for path in files if "secrets" not in path.relative_to(ROOT).parts]
    assert len(files) >= 14
    for path in files:
        text = path.read_text()
        assert "PRIVATE KEY-----" not in text
        for key, value in re.findall(r"(?i)\b(\w*(?:password|secret_key|access_key))\s*[:=]\s*(\S+)", text):
            assert value.startswith(("/keys/", "${file:", "null", "'password'")), f"{path.name}: {key}: {value}"
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# ---- compose --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_compose_is_hardened(name):
    service = SERVICES[name]
    assert pinned(service["image"]), service["image"]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] and limits["memory"]
    assert "ports" not in service and "privileged" not in service
    if name != "prepare":
        assert service["user"].partition(":")[0] not in ("0", "root", "")
        assert "cap_add" not in service
    else:
        assert service["network_mode"] == "none"
    assert ("healthcheck" in service) == (name not in ONCE)


def test_what_compose_refers_to_exists():
    volumes = set(COMPOSE["volumes"])
    used = set()
    for name, service in SERVICES.items():
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("./"):
                assert source == "./deploy/secrets" or (ROOT / source).exists(), f"{name}: {source}"
            else:
                used.add(source)
        for other, wanted in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert wanted["condition"] == condition and other in SERVICES
    assert used == volumes
    assert (ROOT / SERVICES["esper"]["build"]["dockerfile"]).exists()


def test_only_the_first_service_sees_all_secrets():
    for name, service in SERVICES.items():
        sees = [mount for mount in service.get("volumes", []) if "secrets:" in mount.partition(":")[0] + ":"]
        assert bool(sees) == (name == "prepare")
        keys = [mount.partition(":")[0] for mount in service.get("volumes", []) if "-keys" in mount]
        assert len(keys) == (5 if name == "prepare" else 1)


def test_each_gets_the_secrets_it_is_told_of():
    given = {}
    for account, folder, names in re.findall(
        r"^give (\S+) /keys/(\w+) (.*)$", (DEPLOY / "prepare.sh").read_text(), re.M
    ):
        given[folder] = set(names.split())
        assert account.startswith(("999:", "1000:")) and given[folder] <= MADE
    assert not [names for names in given.values() if "ca.key" in names]
    kustomized = {
        generator["name"].removesuffix("-keys"): {
            Path(name.partition("=")[2] or name).name for name in generator["files"]
        }
        for generator in KUSTOMIZATION["secretGenerator"]
    }
    assert given.keys() == kustomized.keys()
    for name, files in given.items():
        assert kustomized[name] <= files
    asked = set(re.findall(r"/run/secrets/esper/([\w.]+)", (DEPLOY / "esper.yaml").read_text()))
    assert asked == given["esper"] == kustomized["esper"]


def run_elsewhere(script, folder, **commands):
    """Runs a script of deploy/ with /keys, /data and /secrets below `folder`, and some commands by other means."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    text = re.sub(r"(?<![\w.])/(keys|data|secrets)/", rf"{folder}/\1/", script.read_text())
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "MC_CONFIG_DIR": f"{folder}/mc"}
    subprocess.run(["sh", "-c", text], check=True, env=environment)


def test_minio_finds_the_files_it_starts_with(secrets, tmp_path):
    """It makes ~/.minio and the folder CAs of its certificates where they are missing, and neither can be made."""
    for folder in ("postgres", "redis", "minio", "setup", "esper"):
        (tmp_path / "keys" / folder).mkdir(parents=True)
    (tmp_path / "secrets").symlink_to(secrets)
    for _ in range(2):  # it runs at each start
        run_elsewhere(DEPLOY / "prepare.sh", tmp_path, chown="", chmod="")
    keys = tmp_path / "keys" / "minio"
    prepared = {str(path.relative_to(keys)) for path in keys.rglob("*") if path.is_file()}
    (volume,) = [volume["secret"] for volume in PODS["minio"]["spec"]["volumes"] if volume["name"] == "keys"]
    assert prepared == {item["path"] for item in volume["items"]}
    assert prepared >= {"public.crt", "private.key", "CAs/ca.pem"}
    (generator,) = [item for item in KUSTOMIZATION["secretGenerator"] if item["name"] == "minio-keys"]
    names = {Path(name.partition("=")[0]).name for name in generator["files"]}
    assert names == {item["key"] for item in volume["items"]}
    (container,) = PODS["minio"]["spec"]["containers"]
    assert {"name": "HOME", "value": "/tmp"} in container["env"] and SERVICES["minio"]["environment"]["HOME"] == "/tmp"


def test_setting_minio_up_shows_no_secret_to_other_processes(secrets, tmp_path):
    (tmp_path / "keys").symlink_to(secrets)
    mc = f"""echo "$@" >>{tmp_path}/said; case "$*" in "admin user add"*) cat >{tmp_path}/read;; esac"""
    run_elsewhere(DEPLOY / "minio" / "setup.sh", tmp_path, mc=mc)
    said = (tmp_path / "said").read_text()
    assert said.splitlines()[0] == "mb --ignore-existing store/esper-artifacts" and "policy attach store" in said
    for name in ("minio_root_password", "storage_secret_key"):
        assert (secrets / name).read_text() not in said
    keys = [(secrets / name).read_text() for name in ("storage_access_key", "storage_secret_key")]
    assert (tmp_path / "read").read_text().splitlines() == keys


def test_the_image_is_built_of_what_it_copies_and_sees_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines and sent == {name for names in copied for name in names.split()}


def test_dockerfile_is_pinned_and_not_root():
    text = (DEPLOY / "Dockerfile").read_text()
    assert pinned(re.search(r"^FROM (\S+)", text)[1]) and re.search(r"^USER 1000:1000$", text, re.M)


# ---- esper and its services -----------------------------------------------------------------------------


def test_the_configuration_is_the_template_and_finds_the_services(secrets, tmp_path):
    """Regenerate with `make reference`."""
    text = (DEPLOY / "esper.yaml").read_text()
    assert text == template("cluster")
    (tmp_path / "esper.yaml").write_text(text.replace("/run/secrets/esper", str(secrets)))
    config = EsperConfig.from_yaml(tmp_path / "esper.yaml")
    config.check()
    names = {config.database.host, config.redis.host, config.storage.endpoint_url.split("/")[2].partition(":")[0]}
    assert names == set(SERVERS) <= set(SERVICES)
    services = {item["metadata"]["name"]: item["spec"] for _, item in OBJECTS if item["kind"] == "Service"}
    ports = {name: spec["ports"][0]["port"] for name, spec in services.items()}
    assert ports == {"postgres": config.database.port, "redis": config.redis.port, "minio": 9000}
    assert config.database.ssl_mode == "verify-full" and config.redis.tls
    policy = json.loads((DEPLOY / "minio" / "policy.json").read_text())
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    bucket = f"arn:aws:s3:::{config.storage.bucket_name}"
    assert resources == {bucket, f"{bucket}/*"}
    assert not [action for statement in policy["Statement"] for action in statement["Action"] if "*" in action]


def test_a_run_that_is_started_again_goes_on(monkeypatch):
    """As containers start it, by the command's own parser; and each is started again if it fails."""
    (spec,) = (pod["spec"] for name, pod in PODS.items() if name == "esper")
    (job,) = (container for container in spec["containers"] if container["name"] == "esper")
    assert spec["restartPolicy"] == "OnFailure" and SERVICES["esper"]["restart"].startswith("on-failure")
    asked = []
    monkeypatch.setattr(grow, "_grow", lambda parsed: asked.append(parsed) or 0)
    for command in (job["args"], SERVICES["esper"]["command"]):
        assert main(command) == 0
        assert asked[-1].config == "/etc/esper/esper.yaml" and asked[-1].resume == "if begun"


def test_runs_keep_their_library_where_they_may_write():
    """The folder holds what cannot be delivered just now; all else is a read-only file system."""
    service = SERVICES["esper"]
    (mounted,) = [mount.partition(":")[2] for mount in service["volumes"] if mount.startswith("runs:")]
    assert service["environment"]["LIBRARY_DIR"].startswith(f"{mounted}/")
    pod = PODS["esper"]["spec"]
    for container in pod["initContainers"] + pod["containers"]:
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        assert given["LIBRARY_DIR"].startswith("/runs/")


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_read_and_run(script):
    assert os.access(script, os.X_OK)
    shell = script.read_text().splitlines()[0].removeprefix("#!").split()[-1].rpartition("/")[2]
    assert subprocess.run([shell, "-n", script], capture_output=True).returncode == 0


# ---- Kubernetes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "container"), CONTAINERS, ids=[name for name, _ in CONTAINERS])
def test_a_container_is_hardened(name, container):
    assert pinned(container["image"]), container["image"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}
    if name.partition("/")[0] in SERVERS:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_nobody_and_everything_it_mounts_is_defined(name):
    pod = PODS[name]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] >= 999 and context["fsGroup"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"} and pod["automountServiceAccountToken"] is False
    secrets = {item["name"] for item in KUSTOMIZATION["secretGenerator"]}
    configs = {item["name"] for item in KUSTOMIZATION["configMapGenerator"]}
    owners = [item for _, item in OBJECTS if item["metadata"]["name"] == name and "template" in item.get("spec", {})]
    claimed = {claim["metadata"]["name"] for claim in owners[0]["spec"].get("volumeClaimTemplates", [])}
    defined = claimed | {volume["name"] for volume in pod["volumes"]}
    mounted = {mount["name"] for c in pod.get("initContainers", []) + pod["containers"] for mount in c["volumeMounts"]}
    assert mounted == defined
    for volume in pod["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["secretName"] in secrets and not volume["secret"]["defaultMode"] & 0o007
        if "configMap" in volume:
            assert volume["configMap"]["name"] in configs
        if "persistentVolumeClaim" in volume:
            claims = {item["metadata"]["name"] for _, item in OBJECTS if item["kind"] == "PersistentVolumeClaim"}
            assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_kustomize_finds_its_files():
    assert {f"kubernetes/{name}" for name, _ in OBJECTS} == set(KUSTOMIZATION["resources"])
    for generator in KUSTOMIZATION["configMapGenerator"]:
        for name in generator["files"]:
            assert (DEPLOY / name).is_file(), name
    for generator in KUSTOMIZATION["secretGenerator"]:
        for name in generator["files"]:
            place = Path(name.partition("=")[2] or name)
            assert place.parent.name == "secrets" and place.name in MADE


def test_the_network_lets_nobody_through_but_who_has_to():
    policies = {item["metadata"]["name"]: item["spec"] for _, item in OBJECTS if item["kind"] == "NetworkPolicy"}
    nothing = policies["nothing"]
    assert nothing["podSelector"] == {} and set(nothing["policyTypes"]) == {"Ingress", "Egress"}
    assert not nothing.keys() & {"ingress", "egress"}
    labels = {name: template["metadata"]["labels"]["app"] for name, template in PODS.items()}
    assert all(name == label for name, label in labels.items())
    for server in SERVERS:
        (rule,) = policies[server]["ingress"]
        ((selector),) = [peer["podSelector"]["matchExpressions"][0] for peer in rule["from"]]
        assert set(selector["values"]) <= {"esper", "minio-setup"} and len(rule["ports"]) == 1
    namespace = next(item for _, item in OBJECTS if item["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
