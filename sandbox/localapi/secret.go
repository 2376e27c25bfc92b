package localapi

import (
	"fmt"
	"log/slog"
)

// Secret is a string that prints as "redacted" wherever it is printed or
// logged. Only encoding/json on this package's wire types carries its value.
type Secret string

// String hides the value from fmt.
func (Secret) String() string { return "redacted" }

// GoString hides it from %#v.
func (Secret) GoString() string { return "redacted" }

// Format hides it from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "redacted") } // fmt reports errors itself

// LogValue hides it from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("redacted") }

// Reveal returns the value.
func (s Secret) Reveal() string { return string(s) }
