// SPDX-License-Identifier: LGPL-3.0-or-later

// The namespace mdcs at geth's console: geth attach --preload ethmcast/console.js. The
// console knows by itself only what is in the released geth.
web3._extend({
	property: 'mdcs',
	methods: [
		new web3._extend.Method({name: 'setEnabled', call: 'mdcs_setEnabled', params: 1}),
		new web3._extend.Method({name: 'requestReceipt', call: 'mdcs_requestReceipt', params: 1}),
	],
	properties: [
		new web3._extend.Property({name: 'status', getter: 'mdcs_status'}),
		new web3._extend.Property({name: 'rps', getter: 'mdcs_rps'}),
		new web3._extend.Property({name: 'discovery', getter: 'mdcs_discovery'}),
		new web3._extend.Property({name: 'counters', getter: 'mdcs_counters'}),
		new web3._extend.Property({name: 'receipts', getter: 'mdcs_receipts'}),
	]
});
var mdcs = web3.mdcs;
