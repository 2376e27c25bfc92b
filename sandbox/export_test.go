package sandbox

import "context"

// PoolKey, TendPool and Retire are for the tests of this package.
var PoolKey = poolKey

// TendPool is one pass of the pool.
func (m *Manager) TendPool(ctx context.Context) error { return m.tendPool(ctx) }

// Retire is what the pool does with what it no longer wants.
func (m *Manager) Retire(ctx context.Context, id ID, r Reason) error { return m.retire(ctx, id, r) }
