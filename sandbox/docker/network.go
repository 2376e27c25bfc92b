package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"

	"github.com/podspawn/podspawn/sandbox"
)

// Networks is the host's side of sandboxes' networks: what enforces, outside of
// the engine, what they may reach. Methods are safe for concurrent use.
type Networks interface {
	// Check returns nil while that is enforced on every interface whose name begins
	// with sandbox.BridgePrefix. Its error is a sandbox.Error of KindUnavailable.
	Check() error

	// Pool returns the network of which sandboxes' networks are made, and the parts
	// of it that the host uses already.
	Pool() (pool netip.Prefix, taken []netip.Prefix, err error)

	// RemoveBridge deletes the bridge of that name, if there is one.
	RemoveBridge(ctx context.Context, name string) error
}

const (
	// networkBits is the size of a sandbox's network: the gateway's address and the
	// sandbox's own.
	networkBits = 30
	// subnetTries bounds how often the engine may find a subnet taken.
	subnetTries = 16
)

var errNoSubnet = &sandbox.Error{
	Kind: sandbox.KindCapacity, Msg: "there is no network left for another sandbox",
	Hint: "destroy some, or have the administrator set egress.pool to a larger network",
}

// networkFor makes the network of a sandbox and returns its id; "" for none. The
// rules come first: they are about the bridge's name, and must hold before it exists.
func (r *Runtime) networkFor(ctx context.Context, p sandbox.StartParams, nonce string) (string, error) {
	if p.Egress == sandbox.EgressNone {
		return "", nil
	}
	if err := r.cfg.Networks.Check(); err != nil {
		return "", err
	}
	pool, taken, err := r.cfg.Networks.Pool()
	if err != nil {
		return "", fmt.Errorf("choose a network: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for range subnetTries {
		subnet, ok := r.nextSubnet(pool, taken)
		if !ok {
			return "", errNoSubnet
		}
		id, err := r.createNetwork(ctx, p.Sandbox, subnet, nonce)
		switch {
		case err == nil:
			return id, nil
		case cerrdefs.IsConflict(err):
			return "", &sandbox.Error{
				Kind: sandbox.KindConflict, Err: err, Msg: fmt.Sprintf("sandbox %s has a network already", p.Sandbox),
				Hint: "destroy it first",
			}
		case !contains(strings.ToLower(err.Error()), "overlap"):
			return "", engineError("create network", err)
		}
		taken = append(taken, subnet) // of a network whose bridge is gone
	}
	return "", errNoSubnet
}

// nextSubnet returns a part of pool that nobody has. It goes round the pool, so
// that parallel calls get different ones and an address is not used again at once.
func (r *Runtime) nextSubnet(pool netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	first := binary.BigEndian.Uint32(pool.Addr().AsSlice())
	count := uint32(1) << (networkBits - pool.Bits())
	r.mu.Lock()
	defer r.mu.Unlock()
	for range count {
		r.subnet = (r.subnet + 1) % count
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], first+r.subnet<<(32-networkBits))
		s := netip.PrefixFrom(netip.AddrFrom4(a), networkBits)
		if !slices.ContainsFunc(taken, s.Overlaps) {
			return s, true
		}
	}
	return netip.Prefix{}, false
}

func (r *Runtime) createNetwork(ctx context.Context, id sandbox.ID, subnet netip.Prefix, nonce string) (string, error) {
	no := false
	resp, err := r.api.NetworkCreate(ctx, containerName(id), network.CreateOptions{
		Driver: "bridge", EnableIPv6: &no,
		IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{
			Subnet: subnet.String(), Gateway: subnet.Addr().Next().String(),
		}}},
		Options: map[string]string{
			"com.docker.network.bridge.name":                 id.Bridge(),
			"com.docker.network.bridge.enable_icc":           "false",
			"com.docker.network.bridge.enable_ip_masquerade": "false", // our own rules do it, with or without the engine's
		},
		Labels: map[string]string{LabelSandbox: string(id), LabelHost: r.cfg.Host, labelStart: nonce},
	})
	if err != nil {
		return "", err
	}
	return resp.ID, nil
}

// removeNetworks removes every network with the label. Their containers are gone.
func (r *Runtime) removeNetworks(ctx context.Context, label string) error {
	nets, err := r.api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("label", label))})
	if err != nil {
		return engineError("list networks", err)
	}
	for _, n := range nets {
		if err := r.removeNetwork(ctx, n.ID); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) removeNetwork(ctx context.Context, id string) error {
	err := r.api.NetworkRemove(ctx, id)
	if err == nil || gone(err) {
		return nil
	}
	// An engine that was killed may believe in an endpoint whose container is gone.
	n, ierr := r.api.NetworkInspect(ctx, id, network.InspectOptions{})
	if gone(ierr) {
		return nil
	}
	errs := []error{engineError("remove network", err), ierr}
	for container := range n.Containers {
		errs = append(errs, r.api.NetworkDisconnect(ctx, id, container, true))
	}
	if err := r.api.NetworkRemove(ctx, id); err != nil && !gone(err) {
		return errors.Join(append(errs, engineError("remove network", err))...)
	}
	return nil
}

// networks returns the sandboxes that have a network of this installation.
func (r *Runtime) networks(ctx context.Context) ([]sandbox.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	nets, err := r.api.NetworkList(ctx, network.ListOptions{Filters: r.ours()})
	if err != nil {
		return nil, engineError("list networks", err)
	}
	var out []sandbox.ID
	for _, n := range nets {
		if id, err := sandbox.ParseID(n.Labels[LabelSandbox]); err == nil {
			out = append(out, id)
		}
	}
	return out, nil
}
