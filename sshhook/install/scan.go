package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxConfig bounds the files that set-up reads, in bytes.
const maxConfig = 1 << 20

// checkOrder refuses a configuration in which some Match block comes before our
// drop-in is read: the first Match that sets a keyword wins, and an earlier one
// gave sandbox logins another forced command and passwords.
func checkOrder(config string) error {
	text, err := readFile(config)
	if err != nil {
		return err
	}
	dropIn := dropInPath(config)
	for n, words := range directives(text) {
		switch strings.ToLower(words[0]) {
		case "match":
			return refuse(fmt.Sprintf("%s has a Match block in line %d, before it includes %s", config, n, dropIn),
				"move the line Include "+filepath.Dir(dropIn)+"/*.conf above it")
		case "include":
			for _, pattern := range words[1:] {
				found, err := scanIncluded(config, pattern, dropIn)
				if found || err != nil {
					return err
				}
			}
		}
	}
	return refuse(config+" does not include "+filepath.Dir(dropIn)+"/*.conf", "add the line Include "+filepath.Dir(dropIn)+"/*.conf at its beginning")
}

// scanIncluded looks through the files of one Include pattern in sshd's order and
// reports whether our drop-in is among them.
func scanIncluded(config, pattern, dropIn string) (found bool, err error) {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join("/etc/ssh", pattern) // sshd_config(5)
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return false, fmt.Errorf("include %s of %s: %w", pattern, config, err)
	}
	ours, err := filepath.Match(pattern, dropIn)
	if err != nil {
		return false, err
	}
	if ours && !slices.Contains(files, dropIn) {
		files = append(files, dropIn)
	}
	slices.Sort(files)
	for _, f := range files {
		if f == dropIn {
			return true, nil
		}
		text, err := readFile(f)
		if err != nil {
			return false, err
		}
		for n, words := range directives(text) {
			switch strings.ToLower(words[0]) {
			case "match", "include": // what an include brings is not followed; it may bring a Match
				return false, refuse(fmt.Sprintf("%s has %s in line %d and is read before %s", f, words[0], n, dropIn),
					"rename that file so that it sorts after "+filepath.Base(dropIn))
			}
		}
	}
	return false, nil
}

// directives yields the line numbers and words of text, without comments.
func directives(text string) func(yield func(int, []string) bool) {
	return func(yield func(int, []string) bool) {
		n := 0
		for l := range strings.Lines(text) {
			n++
			l = strings.TrimSpace(l)
			if l == "" || l[0] == '#' {
				continue
			}
			words := strings.FieldsFunc(l, func(r rune) bool { return r == ' ' || r == '\t' || r == '=' || r == '"' })
			if len(words) > 0 && !yield(n, words) {
				return
			}
		}
	}
}

// readFile reads a configuration file; one that does not exist is an error.
func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfig {
		return "", refuse(path+" is no configuration file", "it must be a regular file of at most 1 MiB")
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return string(b), nil
}

// readOptional is readFile for a file that need not exist.
func readOptional(path string) (text string, exists bool, err error) {
	text, err = readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return text, err == nil, err
}
