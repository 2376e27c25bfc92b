package ephemeralkeys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// BindingExtension carries the [Binding]. It is the only extension of ours: sshd
// writes a log line for each that it doesn't know.
const BindingExtension = "permit@podspawn.dev"

// BindingVersion is the only version of the binding that exists.
const BindingVersion = 1

const (
	maxBinding = 1 << 10
	maxUses    = 1 << 20
)

var (
	sandboxPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	specPattern    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	tokenPattern   = regexp.MustCompile(`^[A-Za-z0-9_-]{0,64}$`)
)

// Binding ties a certificate to one sandbox and to the spec that it was made
// from, so that it opens nothing else, not even the same login made anew.
type Binding struct {
	V       int    `json:"v"`
	Sandbox string `json:"sandbox"`
	Spec    string `json:"spec"`  // "sha256:" and 64 hexadecimal digits
	Uses    int    `json:"uses"`  // connections; 0 is unlimited while valid
	Token   string `json:"token"` // id of the API token that asked, or ""
}

func (b Binding) check() error {
	switch {
	case b.V != BindingVersion:
		return fmt.Errorf("version %d", b.V)
	case !sandboxPattern.MatchString(b.Sandbox):
		return errors.New("bad sandbox id")
	case !specPattern.MatchString(b.Spec):
		return errors.New("bad spec digest")
	case b.Uses < 0 || b.Uses > maxUses:
		return fmt.Errorf("%d uses", b.Uses)
	case !tokenPattern.MatchString(b.Token):
		return errors.New("bad token id")
	}
	return nil
}

func (b Binding) encode() (string, error) {
	if err := b.check(); err != nil {
		return "", err
	}
	text, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	return string(text), nil
}

// decodeBinding accepts exactly what encode writes, byte for byte: no unknown,
// doubled or differently cased name, which one reader would take and another not.
func decodeBinding(text string) (Binding, error) {
	if len(text) > maxBinding {
		return Binding{}, fmt.Errorf("%d bytes", len(text))
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	var b Binding
	if err := d.Decode(&b); err != nil {
		return Binding{}, errors.New("not the expected JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Binding{}, errors.New("text after the JSON")
	}
	canonical, err := b.encode()
	if err != nil {
		return Binding{}, err
	}
	if canonical != text {
		return Binding{}, errors.New("not in canonical form")
	}
	return b, nil
}
