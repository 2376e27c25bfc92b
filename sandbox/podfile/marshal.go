package podfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// Marshal writes a complete spec as the Podfile that Parse reads as the same
// spec, with every value spelled out. Text is quoted unless it is plainly text.
func Marshal(s sandbox.Spec) []byte {
	var b bytes.Buffer
	line := func(key, v string) {
		if v != "" {
			fmt.Fprintf(&b, "%s: %s\n", key, yamlText(v))
		}
	}
	line("name", s.Name)
	line("image", s.Image)
	if len(s.Env) > 0 {
		b.WriteString("env:\n")
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			fmt.Fprintf(&b, "  %s: %s\n", yamlText(k), yamlText(s.Env[k]))
		}
	}
	line("user", s.User)
	line("shell", s.Shell)
	line("workspace", s.Workspace)
	fmt.Fprintf(&b, "resources: {cpus: %s, memory: %s, disk: %s, pids: %d}\n", strconv.FormatFloat(s.Resources.CPUs, 'f', -1, 64),
		formatSize(s.Resources.Memory), formatSize(s.Resources.Disk), s.Resources.PIDs)
	fmt.Fprintf(&b, "network: {egress: %s}\n", yamlText(string(s.Network.Egress)))
	fmt.Fprintf(&b, "ssh: {forwarding: %t, agent: %t, x11: %t, sftp: %t}\n", s.SSH.Forwarding, s.SSH.Agent, s.SSH.X11, s.SSH.SFTP)
	fmt.Fprintf(&b, "lifecycle: {ttl: %s, idle_timeout: %s, on_exit: %s, grace: %s}\n",
		s.Lifecycle.TTL, s.Lifecycle.IdleTimeout, yamlText(string(s.Lifecycle.OnExit)), s.Lifecycle.Grace)
	return b.Bytes()
}

// plainPattern is text that no reader of YAML takes for something else, but for
// the words that yamlText excludes.
var plainPattern = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$`)

func yamlText(s string) string {
	switch strings.ToLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n":
	default:
		if plainPattern.MatchString(s) {
			return s
		}
	}
	// A JSON string is a YAML double-quoted one. Of what JSON leaves as it is, YAML
	// does not allow DEL and the C1 controls, and folds U+0085.
	q, err := json.Marshal(s)
	if err != nil {
		panic("podfile: text does not marshal: " + err.Error()) // strings always do
	}
	var b strings.Builder
	for _, r := range string(q) {
		if r >= 0x7f && r <= 0x9f || r == 0xfeff {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
