package image

import (
	"bufio"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

//go:embed finish.sh
var finish string

var suitePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// recipe is everything of ours that decides what is in the image.
type recipe struct {
	Suite    string   `json:"suite"`
	Arch     string   `json:"arch"`
	Packages []string `json:"packages"`
	Dpkg     []string `json:"dpkg"`
	Finish   string   `json:"finish"`
	Changes  []string `json:"changes"`
}

func newRecipe(suite, arch string) recipe {
	return recipe{
		Suite: suite, Arch: arch, Packages: packages(), Dpkg: dpkgOptions(), Finish: finish,
		Changes: []string{
			"USER dev",
			"WORKDIR /workspace",
			"ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"ENV LANG=C.UTF-8",
			`CMD ["/bin/bash"]`,
		},
	}
}

// packages are what a person or an agent expects to find, on top of the minimal
// system: fetching, editing and searching text, archives, processes, git and
// Python. Compilers are left to images of one's own.
func packages() []string {
	return []string{
		"ca-certificates", "curl", "git", "jq", "less", "nano", "openssh-client", "openssh-sftp-server", "patch", "procps",
		"psmisc", "python3", "ripgrep", "rsync", "unzip", "vim-tiny", "xz-utils", "zip",
	}
}

// dpkgOptions leave documentation and translations out, also of what is installed later.
func dpkgOptions() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/doc/*",
		"path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/lintian/*",
	}
}

// digest is the recipe's identity, and part of a file name.
func (r recipe) digest() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic("image: recipe does not marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// hostSuite reads the host's release name from the text of os-release(5).
func hostSuite(r io.Reader) (string, error) {
	values := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), "="); ok {
			values[k] = strings.Trim(v, `"'`)
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read os-release: %w", err)
	}
	suite := values["VERSION_CODENAME"]
	if id := values["ID"]; (id != "debian" && id != "ubuntu") || !suitePattern.MatchString(suite) {
		return "", sandbox.Errorf(sandbox.KindUnavailable, "build on Debian 12 or later, or Ubuntu 22.04 or later",
			"the base image cannot be built on this system (%.40q)", id)
	}
	return suite, nil
}

// sources returns the distribution's own package sources on this host, which the
// image keeps. Files that others put next to them are not looked at: their keys
// need not be in the image. With none, mmdebstrap's own default applies.
func sources(root string) []string {
	var found []string
	for _, p := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources"} {
		if fi, err := os.Stat(root + p); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			found = append(found, root+p)
		}
	}
	if len(found) > 0 {
		return found
	}
	if b, err := os.ReadFile(root + "/etc/apt/sources.list"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(strings.TrimSpace(line), "deb ") || strings.HasPrefix(strings.TrimSpace(line), "deb\t") {
				return []string{root + "/etc/apt/sources.list"}
			}
		}
	}
	return nil
}
