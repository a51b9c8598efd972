// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"testing"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

func TestGolden(t *testing.T) {
	datapathtest.Golden(t, func(_ *testing.T, cfg datapath.Config) datapathtest.Subject { return newTableSubject(cfg) })
}
