package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
)

// fetchTimeout bounds one fetch of published keys, from name look-up to last byte.
const fetchTimeout = 5 * time.Second

var publisherPattern = regexp.MustCompile(`^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}$`)

// fetchKeys returns the keys that a user has published at BASE/USER.keys. What
// answers there lets people in, so it is https only, and an answer counts only from
// that address: no redirect is followed, and a name must not lead to a private
// address (base may name one itself, by its number: that is the administrator's word).
func fetchKeys(ctx context.Context, base, publisher string) (string, error) {
	return fetchKeysWith(ctx, base, publisher, nil)
}

func fetchKeysWith(ctx context.Context, base, publisher string, trust *tls.Config) (string, error) {
	if !publisherPattern.MatchString(publisher) {
		return "", &usageError{msg: fmt.Sprintf("--github %q is no user name", publisher), hint: "give the name alone"}
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", &usageError{msg: "github_url is no https address", hint: "podspawn config show says where it was set"}
	}
	u = u.JoinPath(publisher + ".keys")
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	dialer := &net.Dialer{}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		dialer.Control = refusePrivate
	}
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: trust, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it answers with a redirect, which is not followed")
		},
	}
	failed := func(err error) error {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // its URL repeats what is said already
		}
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: fmt.Sprintf("the keys of %s can't be fetched from %s: %v", publisher, u.Host, err),
			Hint: "fetch them yourself and use --key-file", Err: err,
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", failed(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", failed(fmt.Errorf("it answers %d", resp.StatusCode))
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, ephemeralkeys.MaxAuthorizedKeys+1))
	if err != nil {
		return "", failed(err)
	}
	if len(text) > ephemeralkeys.MaxAuthorizedKeys {
		return "", failed(errors.New("the answer is too long"))
	}
	return strings.TrimSpace(string(text)), nil
}

// sharedNet is the carriers' private range, RFC 6598.
var sharedNet = netip.MustParsePrefix("100.64.0.0/10")

// refusePrivate is a net.Dialer's Control: it sees the address that is dialed, after
// the look-up, so a name can't be changed in between.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if a := ap.Addr().Unmap(); !a.IsGlobalUnicast() || a.IsPrivate() || sharedNet.Contains(a) {
		return fmt.Errorf("its name leads to the private address %s", a)
	}
	return nil
}
