"""The toy problem of REBAR and RELAX: one discrete variable whose best outcome is hardly better than the rest."""
