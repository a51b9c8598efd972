// SPDX-License-Identifier: LGPL-3.0-or-later

package wire

import "fmt"

// Verdict is what became of a received datagram (SPEC section 6.3). Each exit of
// the datapath has exactly one; its String is the label in metrics and tools.
type Verdict uint8

// The values are part of the contract between the engines: append only.
const (
	Pass          Verdict = iota // accepted
	Truncated                    // shorter than the header
	Oversized                    // longer than MaxDatagram
	BadVersion                   // not version 1
	BadType                      // type unknown, or not taken in this role
	BadLength                    // payload length and datagram disagree
	Malformed                    // fields contradict each other
	NoSession                    // session index unknown
	BadSource                    // not the session's address and port
	BadHopTag                    // hop tag wrong
	NoKey                        // no group key for (ingress RP, group, epoch)
	BadPayloadTag                // payload tag wrong
	NotPublisher                 // session may not publish to the group
	BadUpstream                  // ingress RP not expected of the sender
	HopLimit                     // RP-RP hops used up
	OverRate                     // beyond the granted rate
	FarAhead                     // sequence far beyond the newest one known
	Replayed                     // sequence seen before
	TooOld                       // sequence older than its window word
	Orphaned                     // the RP's control plane is gone for too long
	verdicts
)

var verdictNames = [verdicts]string{
	"pass", "truncated", "oversized", "bad_version", "bad_type", "bad_length", "malformed", "no_session",
	"bad_source", "bad_hop_tag", "no_key", "bad_payload_tag", "not_publisher", "bad_upstream", "hop_limit",
	"over_rate", "far_ahead", "replayed", "too_old", "orphaned",
}

func (v Verdict) String() string {
	if v < verdicts {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// ParseVerdict is the inverse of String.
func ParseVerdict(s string) (Verdict, error) {
	for i, name := range verdictNames {
		if name == s {
			return Verdict(i), nil
		}
	}
	return 0, fmt.Errorf("unknown verdict %q", s)
}

// Verdicts returns all verdicts in order.
func Verdicts() []Verdict {
	all := make([]Verdict, verdicts)
	for i := range all {
		all[i] = Verdict(i)
	}
	return all
}

// Counters counts datagrams by verdict. It is not safe for concurrent use.
type Counters [verdicts]uint64
