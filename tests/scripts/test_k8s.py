"""docker/k8s: the manifests hold together, and the published types of Kubernetes, of the Prometheus
operator and of the Gateway API take them. The types are npm packages of 60 MB: without a registry
that part is skipped by name. InferencePool has no such package: its fields are checked here."""

import json
import os
import re
import shutil
import subprocess
import unittest

from fixtures import ROOT

K8S = os.path.join(ROOT, "docker/k8s")
TYPES = os.path.join(ROOT, "build/k8s-types")
PACKAGES = ["typescript@5.8.3", "kubernetes-models@5.1.0",
            "@kubernetes-models/prometheus-operator@6.0.0", "@kubernetes-models/gateway-api@2.0.0"]
# apiVersion/kind -> package and name of the type
KNOWN = {
    "v1/Namespace": ("kubernetes-models/v1", "INamespace"),
    "v1/Service": ("kubernetes-models/v1", "IService"),
    "v1/ServiceAccount": ("kubernetes-models/v1", "IServiceAccount"),
    "apps/v1/Deployment": ("kubernetes-models/apps/v1", "IDeployment"),
    "policy/v1/PodDisruptionBudget": ("kubernetes-models/policy/v1", "IPodDisruptionBudget"),
    "autoscaling/v2/HorizontalPodAutoscaler": ("kubernetes-models/autoscaling/v2",
                                               "IHorizontalPodAutoscaler"),
    "rbac.authorization.k8s.io/v1/Role": ("kubernetes-models/rbac.authorization.k8s.io/v1",
                                          "IRole"),
    "rbac.authorization.k8s.io/v1/RoleBinding": ("kubernetes-models/rbac.authorization.k8s.io/v1",
                                                 "IRoleBinding"),
    "monitoring.coreos.com/v1/PodMonitor": (
        "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1", "IPodMonitor"),
    "gateway.networking.k8s.io/v1/HTTPRoute": (
        "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1", "IHTTPRoute"),
}


def read(name):
    with open(os.path.join(K8S, name), encoding="utf-8") as f:
        return f.read()


class Manifests(unittest.TestCase):
    def setUp(self):
        try:
            import yaml
        except ImportError:
            self.skipTest("no PyYAML")
        self.files = yaml.safe_load(read("kustomization.yaml"))["resources"]
        self.objects = []
        for name in self.files:
            self.objects += [(name, o) for o in yaml.safe_load_all(read(name))]

    def one(self, kind, name="gaze"):
        found = [o for _, o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name]
        self.assertEqual(len(found), 1, (kind, name))
        return found[0]

    def test_every_file_is_listed(self):
        self.assertEqual(set(self.files) | {"kustomization.yaml"}, set(os.listdir(K8S)))

    def test_names_and_ports_agree(self):
        deployment = self.one("Deployment")
        pod = deployment["spec"]["template"]
        labels = pod["metadata"]["labels"]
        ports = {p["name"]: p["containerPort"] for c in pod["spec"]["containers"]
                 for p in c["ports"]}
        for selector in (deployment["spec"]["selector"]["matchLabels"],
                         self.one("Service")["spec"]["selector"],
                         self.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                         self.one("PodMonitor")["spec"]["selector"]["matchLabels"],
                         self.one("InferencePool")["spec"]["selector"]["matchLabels"]):
            self.assertTrue(selector.items() <= labels.items(), selector)
        self.assertIn(self.one("Service")["spec"]["ports"][0]["targetPort"], ports)
        self.assertIn(self.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"], ports)
        self.assertEqual(self.one("InferencePool")["spec"]["targetPorts"],
                         [{"number": ports["http"]}])
        self.assertEqual(self.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"],
                         deployment["metadata"]["name"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = pod["spec"]["containers"][0][probe]["httpGet"]
            self.assertIn(get["port"], ports)
            self.assertIn(get["path"], ("/health", "/health/ready"))

    def test_a_drain_fits_in_the_grace_period(self):
        spec = self.one("Deployment")["spec"]["template"]["spec"]
        container = spec["containers"][0]
        env = {e["name"]: e["value"] for e in container["env"]}
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        self.assertGreater(spec["terminationGracePeriodSeconds"], int(env["GAZE_DRAIN"]) + pause)
        liveness = container["livenessProbe"]
        self.assertGreater(liveness["periodSeconds"] * liveness["failureThreshold"],
                           int(env["GAZE_DRAIN"]) + pause)

    def test_settings_are_the_servers(self):
        with open(os.path.join(ROOT, "server/settings.c"), encoding="utf-8") as f:
            known = set(re.findall(r'^    \{"([a-z-]+)", [A-Z]+, AT\(', f.read(), re.M))
        container = self.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
        for e in container["env"]:
            self.assertIn(e["name"][5:].lower().replace("_", "-"), known)
        for argument in container["args"][1:]:
            self.assertIn(argument[2:].split("=")[0], known)

    def test_the_pool_and_its_metrics(self):
        pool = self.one("InferencePool")
        self.assertEqual(pool["apiVersion"], "inference.networking.k8s.io/v1")
        self.assertEqual(set(pool["spec"]), {"selector", "targetPorts", "endpointPickerRef"})
        picker = pool["spec"]["endpointPickerRef"]
        self.assertEqual(set(picker), {"name", "port", "failureMode"})
        self.assertIn(picker["failureMode"], ("FailOpen", "FailClose"))
        service = self.one("Service", picker["name"])
        self.assertEqual(service["spec"]["ports"][0]["port"], picker["port"]["number"])
        arguments = self.one("Deployment", picker["name"])
        arguments = arguments["spec"]["template"]["spec"]["containers"][0]["args"]
        metrics = ""
        for name in ("metrics.c", "metrics_parts.c"):
            with open(os.path.join(ROOT, "server", name), encoding="utf-8") as f:
                metrics += f.read()
        mapped = [a.split("=")[1] for a in arguments if "-metric=" in a]
        self.assertEqual(len(mapped), 2)
        for name in mapped + ["vllm:cache_config_info"]:
            self.assertTrue('"%s"' % name in metrics, name)
        self.assertIn("vllm:num_requests_waiting", read("hpa.yaml"))

    def install_types(self):
        if not shutil.which("npm"):
            self.skipTest("no npm")
        if not os.path.isdir(os.path.join(TYPES, "node_modules/typescript")):
            os.makedirs(TYPES, exist_ok=True)
            command = ["npm", "install", "--prefix", TYPES, "--ignore-scripts", "--no-audit",
                       "--no-fund", "--silent"] + PACKAGES
            try:
                subprocess.run(command, timeout=180, capture_output=True, check=True)
            except (subprocess.SubprocessError, OSError):
                self.skipTest("no registry with Kubernetes' types")

    def compile(self, source):
        with open(os.path.join(TYPES, "manifests.ts"), "w", encoding="utf-8") as f:
            f.write(source)
        with open(os.path.join(TYPES, "package.json"), encoding="utf-8") as f:
            package = json.load(f)
        package["type"] = "module"
        with open(os.path.join(TYPES, "package.json"), "w", encoding="utf-8") as f:
            json.dump(package, f)
        done = subprocess.run(["node", "node_modules/typescript/bin/tsc", "--noEmit", "--strict",
                               "--skipLibCheck", "--module", "nodenext", "--target", "es2022",
                               "manifests.ts"], cwd=TYPES, capture_output=True, text=True)
        return done.stdout

    def test_types(self):
        self.install_types()
        source, n = "", 0
        for _, o in self.objects:
            known = KNOWN.get(o["apiVersion"] + "/" + o["kind"])
            if o["kind"] == "InferencePool":
                continue
            self.assertTrue(known, o["kind"])
            n += 1
            source += 'import type { %s as T%d } from "%s";\n' % (known[1], n, known[0])
            source += "export const o%d: T%d = %s;\n" % (n, n, json.dumps(o))
        self.assertGreaterEqual(n, 11)
        self.assertEqual(self.compile(source), "")
        # And a slip of the pen is found: the check is not asleep.
        for right, wrong in (('"containerPort": 8000', '"containerPort": "8000"'),
                             ('"minReplicas"', '"minReplica"'), ('"podMetricsEndpoints"',
                                                                 '"podMetricEndpoints"')):
            self.assertIn(right, source)
            self.assertNotEqual(self.compile(source.replace(right, wrong, 1)), "", wrong)


if __name__ == "__main__":
    unittest.main()
