package podfile

import (
	"github.com/podspawn/podspawn/sandbox"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Parse reads a Podfile and lays what it says over base: a key that it has
// replaces base's value, also with a zero (grace: 0s, sftp: false), and env is
// merged by name. With base = sandbox.Spec{}.WithDefaults(d) the result is
// complete. It is not validated: whoever lays more over it does that last.
func Parse(data []byte, base sandbox.Spec) (sandbox.Spec, error) {
	if len(data) > MaxSize {
		return sandbox.Spec{}, refuse(0, "make it shorter", "larger than %d KiB", MaxSize>>10)
	}
	if err := checkText(data); err != nil {
		return sandbox.Spec{}, err
	}
	v, err := parseYAML(data)
	if err != nil {
		return sandbox.Spec{}, err
	}
	return decode(v, base)
}

// FromObject is Parse for a decoded JSON object.
func FromObject(object map[string]any, base sandbox.Spec) (sandbox.Spec, error) {
	v, err := fromObject(object, 0)
	if err != nil {
		return sandbox.Spec{}, err
	}
	return decode(v, base)
}

func tokenize(data []byte) token.Tokens { return lexer.Tokenize(string(data)) }
