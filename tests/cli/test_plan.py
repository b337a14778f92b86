"""dsv3 plan: what it prints, its JSON, and when it fails."""
from support import *

V3 = ROOT / "bench/configs/deepseek-v3.json"
SPEEDS = ["--host-bandwidth", 200, "--gpu-bandwidth", 1000, "--pcie-bandwidth", 50]
GIB = 1 << 30


class Plan(Case):
    def plan(self, *args, name="dsv3"):
        result = program(name, "plan", *args, *SPEEDS, "--json")
        plan = json.loads(self.ok(result))
        for device in plan["devices"]:
            self.assertEqual(device["total"], sum(device[key] for key in ("weights", "cache", "activations", "driver_estimate")))
            if "memory" in device:
                self.assertLessEqual(device["total"], device["memory"])
            held = sum(part["bytes"] for part in plan["parts"] if part["device"] == device["device"] and part["role"] != "kv")
            self.assertLess(abs(device["weights"] - held), 4096)  # rotary frequencies belong to no part
        return plan

    def on(self, plan, role, device):
        return [part for part in plan["parts"] if part["role"] == role and part["device"] == device]

    def test_v3_on_one_gpu(self):
        for memory in (24, 80):
            plan = self.plan(V3, "--gpu-memory", f"{memory}G")
            host, gpu = plan["devices"]
            self.assertEqual(gpu["memory"], memory * GIB)
            self.assertEqual(self.on(plan, "attention", "cuda:0")[0]["layers"], [0, 60])
            self.assertEqual(self.on(plan, "embed", "cpu")[0].get("layers"), None)
            self.assertTrue(self.on(plan, "routed_experts", "cpu") and self.on(plan, "routed_experts", "cuda:0"))
            # Another expert would not have fitted.
            self.assertLess(gpu["memory"] - gpu["total"], 45e6)
            # 8 of 256 experts of 58 layers, wherever they are, and all else.
            self.assertAlmostEqual(host["read_per_token"] + gpu["read_per_token"], 37.67e9, delta=0.2e9)
            at_best = 1 / (host["read_per_token"] / 200e9 + gpu["read_per_token"] / 1000e9)
            self.assertLess(abs(plan["tokens_per_second"] / at_best - 1), 0.05)

    def test_v3_on_eight_gpus(self):
        plan = self.plan(V3, "--gpu-memory", "80G", "--gpus", 8)
        self.assertEqual(len(plan["devices"]), 9)
        self.assertEqual(self.on(plan, "routed_experts", "cpu"), [])

    def test_every_build_plans_alike(self):
        """What a GPU is asked for does not depend on whether CUDA is built in."""
        for args in ((V3, "--gpu-memory", "24G"), (V3, "--gpu-memory", "80G", "--exact", "--gemm", "fp8", "--mtp"), (packed(DEMO), "--gpu-memory", "526M")):
            self.assertEqual(self.plan(*args)["devices"], self.plan(*args, name="dsv3-cuda-host")["devices"])

    def test_batch(self):
        """In passes of 641 tokens on, V3's experts on the host come to the GPU, which then has room for two groups of at least half a GiB."""
        few, many = (self.plan(V3, "--gpu-memory", "24G", "--batch", batch)["devices"][1]["activations"] for batch in (640, 641))
        self.assertTrue(GIB < many - few < 1.2 * GIB, (few, many))

    def test_text(self):
        result = dsv3("plan", V3, "--gpu-memory", "24G", "--mtp", "-c", 100000, *SPEEDS)
        out = self.ok(result).decode()
        for part in ("0-61  attention", "routed_experts", "cuda:0", "driver (estimated)", "24.000 GiB", "At best ", "with 100000 tokens", " crossings a token between devices, "):
            self.assertIn(part, out)
        # This machine is smaller than V3: a warning, and no failure.
        if b"warning" not in result.stderr:
            self.assertGreater(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 600e9)

    def test_cpu_alone(self):
        plan = self.plan(packed(DEMO))
        self.assertEqual([device["device"] for device in plan["devices"]], ["cpu"])
        self.assertEqual((plan["crossings_per_token"], plan["crossed_per_token"]), (0, 0))

    def test_config_and_packed_file_agree(self):
        keys = ("parts", "devices", "tokens_per_second")
        plans = [self.plan(source, "--gpu-memory", "520M") for source in (packed(DEMO), DEMO / "config.json", DEMO)]
        for plan in plans[1:]:
            for key in keys:
                self.assertEqual(plan[key], plans[0][key])

    def test_budgets_that_do_not_hold(self):
        self.fails(dsv3("plan", V3, "--host-memory", "100G", *SPEEDS), "the host's part takes", "more than host_memory")
        self.fails(dsv3("plan", V3, "--gpu-memory", "24G", "--place", "routed_experts=cuda", *SPEEDS),
                   "the parts named for cuda:0 take", "more than driver and activations leave")
        self.plan(V3, "--gpu-memory", "24G", "--host-memory", "700G")
        self.plan(V3, "--gpu-memory", "1M")  # nothing fits there: the host does it all

    def test_rules(self):
        plan = self.plan(V3, "--gpu-memory", "80G", "--place", "layers 10-20 experts 0-7=cuda", "--place", "head=cpu")
        self.assertEqual([part["layers"] for part in self.on(plan, "routed_experts", "cuda:0") if part.get("experts") == [0, 7]], [[10, 20]])
        self.assertEqual(len(self.on(plan, "head", "cpu")), 1)
        plan = self.plan(packed(DEMO), "--place", "layers 2-3 routed_experts=cpu")  # without a limit all else is on one GPU
        self.assertEqual([part["role"] for part in plan["parts"] if part["device"] == "cpu"], ["routed_experts"])

    def test_refused(self):
        self.fails(dsv3("plan", V3, "--gpu-memory", "24X"), "24X", "24G or 512M", code=2)
        self.fails(dsv3("plan", V3, "--gpu-memory", "-1"), "-1", code=2)
        self.fails(dsv3("plan", V3, "--gpus", 2), "say in gpu_memory how much each has")
        self.fails(dsv3("plan", V3, "--gpu-memory", "24G", "--place", "layers 3 experts=cuda"), "experts: got \"=\"")
        self.fails(dsv3("plan", V3, "-c", 10**6), "max_position_embeddings")
        self.fails(dsv3("plan", TEMP / "none.json"), "none.json")
        self.fails(dsv3("plan", ROOT / "README.md"), "README.md")
        big = json.loads(V3.read_text()) | {"n_routed_experts": 10**9, "n_group": 1, "topk_group": 1}
        path = TEMP / "big.json"
        path.write_text(json.dumps(big))
        self.fails(dsv3("plan", path), "big.json")


if __name__ == "__main__":
    main()
