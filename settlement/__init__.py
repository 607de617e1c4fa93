"""Settlement: turns signed vouchers and receipts into bills and payouts."""
