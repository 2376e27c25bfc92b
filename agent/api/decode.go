package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/podspawn/podspawn/sandbox"
)

// MaxBody bounds a request's body, in bytes.
const MaxBody = 1 << 20

// maxDepth bounds how deep a document may nest.
const maxDepth = 32

// Decode reads one JSON object into the struct that v points to, strictly: a
// field that v does not have, a field given twice, other letter case, text
// after the object and bytes that are not UTF-8 are errors. encoding/json alone
// accepts all but the first, so a typo would silently become a default.
//
// later names fields that the public contract knows and this version does not:
// they are refused with a sentence that says so.
//
// Errors are *sandbox.Error of KindUnknownField or KindInvalidSpec.
func Decode(data []byte, v any, later ...string) error {
	if len(data) > MaxBody {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "send less", "the body exceeds %d bytes", MaxBody)
	}
	if !utf8.Valid(data) {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "encode it as UTF-8", "the body is not UTF-8")
	}
	keys, err := scan(data)
	if err != nil {
		return err
	}
	known := fields(reflect.TypeOf(v).Elem())
	for _, k := range keys {
		if slices.Contains(later, k) {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "leave it out", "%s is not supported yet by this version", k)
		}
		if !slices.Contains(known, k) {
			return unknownField(k, known)
		}
	}
	if err := json.Unmarshal(data, v); err != nil {
		return wrongValue(err)
	}
	return nil
}

// scan checks the document's form and returns the keys of the outermost object.
func scan(data []byte) ([]string, error) {
	const hint = "send one JSON object"
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	tok, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, hint, "the body is empty")
	}
	if err != nil {
		return nil, syntax(err)
	}
	if tok != json.Delim('{') {
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, hint, "the body is not a JSON object")
	}
	keys, err := scanObject(dec, "", 1)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, hint, "there is something after the JSON object")
	}
	return keys, nil
}

// scanObject reads to the end of an object whose brace was read.
func scanObject(dec *json.Decoder, path string, depth int) ([]string, error) {
	if depth > maxDepth {
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "nest less", "the body nests deeper than %d levels", maxDepth)
	}
	var keys []string
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, syntax(err)
		}
		key, _ := tok.(string) // the decoder admits nothing else here
		where := path + clip(key)
		if seen[key] {
			return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "give each field once", "field %q is given twice", where)
		}
		seen[key] = true
		keys = append(keys, key)
		if err := scanValue(dec, where+".", depth); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token() // the closing brace
	if err != nil {
		return nil, syntax(err)
	}
	return keys, nil
}

func scanValue(dec *json.Decoder, path string, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return syntax(err)
	}
	switch tok {
	case json.Delim('{'):
		_, err := scanObject(dec, path, depth+1)
		return err
	case json.Delim('['):
		if depth+1 > maxDepth {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "nest less", "the body nests deeper than %d levels", maxDepth)
		}
		for dec.More() {
			if err := scanValue(dec, path, depth+1); err != nil {
				return err
			}
		}
		if _, err := dec.Token(); err != nil {
			return syntax(err)
		}
	}
	return nil
}

func syntax(err error) error {
	at := ""
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		at = fmt.Sprintf(" at byte %d", se.Offset)
	}
	return &sandbox.Error{
		Kind: sandbox.KindInvalidSpec, Msg: "the body is not valid JSON" + at,
		Hint: "send one JSON object", Err: err,
	}
}

// wrongValue turns an error of encoding/json about a value into words without Go types.
func wrongValue(err error) error {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := te.Field
		if field == "" {
			field = "the body"
		}
		return &sandbox.Error{
			Kind: sandbox.KindInvalidSpec, Err: err,
			Msg:  fmt.Sprintf("%s: a %s can't be used here", field, te.Value),
			Hint: "use " + jsonName(te.Type),
		}
	}
	// What is left are the messages of our own UnmarshalJSON methods.
	return &sandbox.Error{Kind: sandbox.KindInvalidSpec, Msg: err.Error(), Hint: "see the API's description"}
}

func jsonName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	default:
		return "a whole number"
	}
}

func unknownField(k string, known []string) error {
	hint := "known are " + strings.Join(known, ", ")
	if near := Nearest(k, known); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	if len(known) == 0 {
		hint = "send an empty object"
	}
	return sandbox.Errorf(sandbox.KindUnknownField, hint, "unknown field %q", clip(k))
}

// fields returns the JSON names of a struct's fields, in order.
func fields(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// Nearest returns the one of known that s is probably a misspelling of, or "".
func Nearest(s string, known []string) string {
	best, at := "", 3
	if len(s) > 40 {
		return ""
	}
	for _, k := range known {
		a, b := strings.ToLower(strings.ReplaceAll(s, "-", "_")), k
		d := distance(a, b)
		if d > len(k)/2 {
			continue
		}
		if d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
