"""Pages of HTML that need nothing but themselves: the report, the comparison, their charts and pictures."""
