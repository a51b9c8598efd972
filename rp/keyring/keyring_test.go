// SPDX-License-Identifier: LGPL-3.0-or-later

package keyring

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/auth/authtest"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

func key(ingress ids.Incarnation, group ids.Group, epoch uint8, active bool) proto.GroupKey {
	return proto.GroupKey{Ingress: ingress, Group: group, Epoch: epoch, Active: active, Key: auth.Key{byte(ingress), byte(group), epoch}}
}

func TestEpochs(t *testing.T) {
	r := New()
	r.Install([]proto.GroupKey{key(1, 5, 254, true)})
	r.Install([]proto.GroupKey{key(1, 5, 255, false)})
	require.Equal(t, []proto.GroupKey{key(1, 5, 254, true), key(1, 5, 255, false)}, r.Of(1))

	// The active one makes the other inactive, and stays in its place.
	r.Install([]proto.GroupKey{key(1, 5, 255, true)})
	require.Equal(t, []proto.GroupKey{key(1, 5, 254, false), key(1, 5, 255, true)}, r.Of(1))

	// The third epoch, after 255, drops the first.
	next, err := r.Next(ids.Stream{Ingress: 1, Group: 5}, bytes.NewReader(make([]byte, auth.KeySize)))
	require.NoError(t, err)
	require.Equal(t, proto.GroupKey{Ingress: 1, Group: 5, Epoch: 0}, next)
	r.Install([]proto.GroupKey{next})
	require.Equal(t, []proto.GroupKey{key(1, 5, 255, true), next}, r.Of(1))

	_, err = r.Next(ids.Stream{Ingress: 1, Group: 5}, bytes.NewReader(nil))
	require.ErrorContains(t, err, "no random group key")
	first, err := r.Next(ids.Stream{Ingress: 9, Group: 9}, bytes.NewReader(make([]byte, auth.KeySize)))
	require.NoError(t, err)
	require.Zero(t, first.Epoch)
}

// The epochs that came last are kept, oldest first, each by the key that came last.
func TestEpochsKept(t *testing.T) {
	for _, test := range authtest.Epochs {
		r := New()
		keys := make(map[uint8]proto.GroupKey)
		for i, epoch := range test.Told {
			k := key(1, 5, epoch, false)
			k.Key[3] = byte(i)
			keys[epoch] = k
			r.Install([]proto.GroupKey{k})
		}
		var want []proto.GroupKey
		for _, epoch := range test.Kept {
			want = append(want, keys[epoch])
		}
		require.Equal(t, want, r.Of(1), test.Name)
		require.Equal(t, want, r.Groups([]ids.Group{5}), test.Name)
	}
}

func TestSelection(t *testing.T) {
	r := New()
	r.Install([]proto.GroupKey{key(2, 5, 0, true), key(1, 6, 0, true), key(1, 5, 0, true)})
	require.Equal(t, []proto.GroupKey{key(1, 5, 0, true), key(2, 5, 0, true)}, r.Groups([]ids.Group{5, 7}))
	require.Equal(t, []proto.GroupKey{key(1, 5, 0, true), key(1, 6, 0, true)}, r.Of(1))
	r.Retire([]ids.Incarnation{1, 3})
	require.Empty(t, r.Of(1))
	require.Equal(t, []proto.GroupKey{key(2, 5, 0, true)}, r.Groups([]ids.Group{5, 6}))
}

// What was returned does not change later.
func TestCopies(t *testing.T) {
	r := New()
	r.Install([]proto.GroupKey{key(1, 5, 0, true)})
	before := r.Of(1)
	r.Install([]proto.GroupKey{key(1, 5, 1, true), key(1, 5, 0, false)})
	require.Equal(t, []proto.GroupKey{key(1, 5, 0, true)}, before)
}
