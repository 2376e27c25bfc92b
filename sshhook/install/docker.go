package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// DockerConfig is where Docker reads its runtimes from.
const DockerConfig = "/etc/docker/daemon.json"

// Runtime is an entry of Docker's runtimes.
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs,omitempty"`
}

// ConfigureDocker adds or updates runtimes in Docker's configuration and keeps
// everything else in it, in its order. It reports whether the file changed: the caller then
// makes dockerd read it (SIGHUP). Undo is RemoveRuntimes.
func ConfigureDocker(path string, runtimes map[string]Runtime) (changed bool, err error) {
	return editRuntimes(path, func(have *object) error {
		for _, name := range sortedKeys(runtimes) {
			b, err := json.Marshal(runtimes[name])
			if err != nil {
				return err
			}
			if old, ok := have.get(name); ok && sameJSON(old, b) {
				continue
			}
			have.set(name, b)
		}
		return nil
	})
}

// RemoveRuntimes takes runtimes out of Docker's configuration.
func RemoveRuntimes(path string, names []string) (changed bool, err error) {
	return editRuntimes(path, func(have *object) error {
		for _, n := range names {
			have.remove(n)
		}
		return nil
	})
}

func editRuntimes(path string, change func(*object) error) (bool, error) {
	text, exists, err := readOptional(path)
	if err != nil {
		return false, err
	}
	const cure = "repair the file; dockerd would not start with it either"
	var config object
	if exists {
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			return false, refuse(fmt.Sprintf("%s is not a JSON object: %v", path, err), cure)
		}
	}
	var runtimes object
	if raw, ok := config.get("runtimes"); ok {
		if err := json.Unmarshal(raw, &runtimes); err != nil {
			return false, refuse(fmt.Sprintf("runtimes in %s is not an object: %v", path, err), cure)
		}
	}
	before, err := json.Marshal(&runtimes)
	if err != nil {
		return false, err
	}
	if err := change(&runtimes); err != nil {
		return false, err
	}
	after, err := json.Marshal(&runtimes)
	if err != nil || bytes.Equal(before, after) {
		return false, err
	}
	if len(runtimes.members) == 0 {
		config.remove("runtimes")
	} else {
		config.set("runtimes", after)
	}
	b, err := json.MarshalIndent(&config, "", "  ")
	if err != nil {
		return false, err
	}
	e := edit{path: path, before: text, exists: exists, after: string(b) + "\n", mode: 0o644}
	if len(config.members) == 0 {
		e.remove = true
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	_, err = e.apply()
	return err == nil, err
}

// object is a JSON object that keeps the order of its members.
type object struct {
	members []member
}

type member struct {
	name  string
	value json.RawMessage
}

func (o *object) index(name string) int {
	return slices.IndexFunc(o.members, func(m member) bool { return m.name == name })
}

func (o *object) get(name string) (json.RawMessage, bool) {
	if i := o.index(name); i >= 0 {
		return o.members[i].value, true
	}
	return nil, false
}

func (o *object) set(name string, v json.RawMessage) {
	if i := o.index(name); i >= 0 {
		o.members[i].value = v
		return
	}
	o.members = append(o.members, member{name, v})
}

func (o *object) remove(name string) {
	if i := o.index(name); i >= 0 {
		o.members = slices.Delete(o.members, i, i+1)
	}
}

// UnmarshalJSON implements json.Unmarshaler. A doubled name is an error.
func (o *object) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	t, err := d.Token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return errors.New("not an object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok || o.index(name) >= 0 {
			return fmt.Errorf("member %v is doubled", t)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return err
		}
		o.members = append(o.members, member{name, v})
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (o *object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o.members {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
