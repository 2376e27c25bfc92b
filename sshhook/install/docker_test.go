package install

import (
	"os"
	"path/filepath"
	"testing"
)

func TestConfigureDocker(t *testing.T) {
	add := map[string]Runtime{"podspawn-runsc-2g": {Path: "/r", Args: []string{"--x=2g"}}, "podspawn-runsc-1g": {Path: "/r"}}
	const ours = "    \"podspawn-runsc-1g\": {\n      \"path\": \"/r\"\n    },\n    \"podspawn-runsc-2g\": {\n      \"path\": \"/r\",\n      \"runtimeArgs\": [\n        \"--x=2g\"\n      ]\n    }\n"
	tests := []struct{ name, in, want, left string }{
		{"no file", "", "{\n  \"runtimes\": {\n" + ours + "  }\n}\n", ""},
		{
			"others kept, in order", `{"z": 1.50, "runtimes": {"nvidia": {"path": "n", "runtimeArgs": []}}, "a": [true]}`,
			"{\n  \"z\": 1.50,\n  \"runtimes\": {\n    \"nvidia\": {\n      \"path\": \"n\",\n      \"runtimeArgs\": []\n    },\n" + ours + "  },\n  \"a\": [\n    true\n  ]\n}\n",
			"{\n  \"z\": 1.50,\n  \"runtimes\": {\n    \"nvidia\": {\n      \"path\": \"n\",\n      \"runtimeArgs\": []\n    }\n  },\n  \"a\": [\n    true\n  ]\n}\n",
		},
		{
			"an older entry of ours", `{"runtimes": {"podspawn-runsc-1g": {"path": "/old"}}, "debug": true}`,
			"{\n  \"runtimes\": {\n" + ours + "  },\n  \"debug\": true\n}\n", "{\n  \"debug\": true\n}\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("files keep their owner, which takes root")
			}
			path := filepath.Join(t.TempDir(), "daemon.json")
			if tt.in != "" {
				if err := os.WriteFile(path, []byte(tt.in), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			changed, err := ConfigureDocker(path, add)
			if b, _ := os.ReadFile(path); !changed || err != nil || string(b) != tt.want {
				t.Errorf("ConfigureDocker = %v, %v:\n%s\nwant\n%s", changed, err, b, tt.want)
			}
			if changed, err := ConfigureDocker(path, add); changed || err != nil {
				t.Errorf("again = %v, %v, want no change", changed, err)
			}
			changed, err = RemoveRuntimes(path, []string{"podspawn-runsc-1g", "podspawn-runsc-2g", "podspawn-runsc-5g"})
			if b, _ := os.ReadFile(path); !changed || err != nil || string(b) != tt.left {
				t.Errorf("RemoveRuntimes = %v, %v:\n%s\nwant\n%s", changed, err, b, tt.left)
			}
		})
	}
	for _, in := range []string{"[]", "{", `{"runtimes": 1}`, `{"a": 1, "a": 2}`, "{} x"} {
		path := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(path, []byte(in), 0o644); err != nil {
			t.Fatal(err)
		}
		if changed, err := ConfigureDocker(path, add); changed || err == nil {
			t.Errorf("ConfigureDocker on %q = %v, %v, want an error", in, changed, err)
		}
		if b, _ := os.ReadFile(path); string(b) != in {
			t.Errorf("ConfigureDocker on %q left %q", in, b)
		}
	}
}
